"""Adapters made by the peft library from tiny models, as a stranger's would be."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from skillhub.adapters import CONFIG_FILE
from skillhub.checkpointfiles import ADAPTER_FILE
from tests.support.tiny_models import load_model


def make_adapter(
    base: Path, folder: Path, *, seed: int = 7, declares: str | None = "acme/tiny", model: Any = None, **settings: Any
) -> Path:
    """Save an adapter with random values in everything that peft would train.

    Args:
        base: the base model's folder.
        folder: where to save it.
        seed: of the values.
        declares: what it says that its base is.
        model: an instance to train instead of what ``base`` holds.
        settings: of peft's ``LoraConfig``.
    """
    import peft

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of fan_in_fan_out, and of what it saves beside the factors
        wrapped = peft.get_peft_model(
            model or load_model(base), peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **settings})
        )
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape)
                parameter.data += (0.2 * noise).to(parameter.dtype)
        wrapped.save_pretrained(folder)
    return with_config(folder, base_model_name_or_path=declares)


def merged_model(base: Path, adapter: Path, *, model: Any = None) -> Any:
    """Return what peft makes of a base model and an adapter."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model or load_model(base), adapter).merge_and_unload().eval()


def with_config(folder: Path, **changes: Any) -> Path:
    """Change fields of an adapter's config."""
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def with_arrays(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """Change an adapter's arrays."""
    save_file(change(load_file(folder / ADAPTER_FILE)), folder / ADAPTER_FILE, metadata={"format": "pt"})
    return folder
