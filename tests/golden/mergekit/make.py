"""Makes the golden files: what mergekit 0.1.5 gives for each configuration of this folder, on models that are the same everywhere.

    python -m venv /tmp/mergekit && /tmp/mergekit/bin/pip install mergekit==0.1.5
    PYTHONPATH=. /tmp/mergekit/bin/python tests/golden/mergekit/make.py

No test rewrites them. Random methods have no golden files: their masks are compared in the tests of merge methods.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.support.merge_models import write_models

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Make the files of the configurations that are named, or of all."""
    torch.set_num_threads(1)
    chosen = [HERE / f"{name}.yml" for name in sys.argv[1:]] or sorted(HERE.glob("*.yml"))
    with TemporaryDirectory() as folder:
        write_models(Path(folder))
        os.chdir(folder)
        for path in chosen:
            out = Path(folder) / "out" / path.stem
            configuration = MergeConfiguration.model_validate(yaml.safe_load(path.read_text()))
            run_merge(configuration, str(out), MergeOptions(quiet=True, write_model_card=False))
            tensors = {
                name: tensor for file in sorted(out.glob("*.safetensors")) for name, tensor in load_file(file).items()
            }
            config = json.loads((out / "config.json").read_text())
            facts = {
                key: config[key] for key in ("num_hidden_layers", "n_layer", "vocab_size", "dtype") if key in config
            }
            if configuration.tokenizer or configuration.tokenizer_source:
                facts["tokens"] = AutoTokenizer.from_pretrained(out).get_vocab()
            save_file(tensors, path.with_suffix(".safetensors"), {"facts": json.dumps(facts, sort_keys=True)})
            print(f"{path.stem}: {len(tensors)} tensors")


if __name__ == "__main__":
    main()
