"""Checkpoints as torch sees them: canonical name → tensor, read on demand from memory-mapped files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from skillhub.basemodel import architecture_of, main_dtype, read_config
from skillhub.bases import locate_base
from skillhub.canonical import canonical_names, tied_aliases
from skillhub.checkpointfiles import checkpoint_files, read_tensors
from skillhub.errors import NotFoundError, UsageError
from skillhub.fingerprint import same_content
from skillhub.tensorfiles import TensorInfo

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""The torch dtype of each safetensors dtype tag that torch has one element for."""

_TAGS = {dtype: tag for tag, dtype in DTYPES.items()}

_WEIGHT_SUFFIXES = frozenset(
    (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite")
)
_LEFT_BEHIND = frozenset(("README.md", "training_args.bin", "trainer_state.json", "optimizer.pt", "scheduler.pt"))


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint folder, opened lazily; headers are checked, tensors are read when asked for.

    Attributes:
        folder: where config.json and the tokenizer lie.
        files: the safetensors files.
        stored: every tensor of the files, by its name in them.
    """

    folder: Path
    files: tuple[Path, ...]
    stored: Mapping[str, TensorInfo]

    @cached_property
    def canonical(self) -> Mapping[str, str]:
        """Name in the files → canonical name, for every tensor but listed buffers."""
        return canonical_names({name: info.shape for name, info in self.stored.items()})

    @cached_property
    def aliases(self) -> Mapping[str, str]:
        """Canonical name of a tensor that repeats another → the other's, such as a tied head → the embedding."""
        infos = {bare: self.stored[name] for name, bare in self.canonical.items()}
        return tied_aliases(infos, lambda first, second: same_content(infos[first], infos[second]))

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Canonical name → tensor, sorted: those that the fingerprint counts, without buffers and aliases."""
        infos = {bare: self.stored[name] for name, bare in self.canonical.items() if bare not in self.aliases}
        return {name: infos[name] for name in sorted(infos)}

    @property
    def names(self) -> list[str]:
        """Canonical names of the tensors, sorted."""
        return list(self.tensors)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor by its canonical name (an alias's too), in its stored dtype, mapped from its file.

        Raises:
            NotFoundError: there is no such tensor.
        """
        info = self.tensors.get(self.aliases.get(name, name))
        if info is None:
            raise NotFoundError(
                f"{self.folder} has no tensor {name!r}.", hint="See `names` for the canonical names it has."
            )
        tensor: torch.Tensor = self._open(info.file).get_tensor(info.name)
        return tensor

    @property
    def dtype(self) -> str | None:
        """Dtype tag of most weights, such as ``BF16``."""
        return main_dtype((info.dtype, info.elements) for info in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(info.elements for info in self.tensors.values())

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json; empty where there is none."""
        return read_config(self.folder)

    @property
    def architecture(self) -> str | None:
        """The class that config.json names, such as ``LlamaForCausalLM``."""
        return architecture_of(self.config)

    def companions(self) -> list[Path]:
        """Return what belongs beside the weights in a copy, relative to the folder: configs, tokenizer, code, license.

        Folders one level down count for their config.json alone (the pooling of sentence-transformers).
        """
        found = [path for path in self.folder.iterdir() if path.is_file() and _is_companion(path)]
        found += self.folder.glob("[!.]*/config.json")
        return sorted(path.relative_to(self.folder) for path in found)

    @cached_property
    def _readers(self) -> dict[Path, Any]:
        return {}

    def _open(self, file: Path) -> Any:
        if file not in self._readers:
            self._readers[file] = safe_open(file, framework="pt")
        return self._readers[file]


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a checkpoint: a folder, one safetensors file, or ``org/name[@revision]``, which is fetched from the Hub.

    Raises:
        NotFoundError: there is no such folder, repository or revision, or it holds no weights.
        UnsafeContentError: the weights are pickles, or a path leaves the folder.
        UsageError: the weights are GGUF, an adapter, or several files without an index.
        IntegrityError: a file is damaged.
        NetworkError: the Hub cannot be reached.
    """
    located = locate_base(source)
    files = tuple(checkpoint_files(located))
    return Checkpoint(located if located.is_dir() else located.parent, files, read_tensors(files))


def dtype_tag(dtype: torch.dtype) -> str:
    """Return the safetensors dtype tag of a torch dtype.

    Raises:
        UsageError: safetensors has none.
    """
    if dtype not in _TAGS:
        raise UsageError(f"safetensors cannot store {dtype}.", hint="Convert the model to another dtype.")
    return _TAGS[dtype]


def _is_companion(path: Path) -> bool:
    name = path.name
    weights = path.suffix in _WEIGHT_SUFFIXES or name.endswith(".index.json")
    return not (weights or name.startswith(".") or name in _LEFT_BEHIND)
