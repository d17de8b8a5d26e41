"""Which files make up a checkpoint folder, and the tensors in them; pickles are refused with the remedy.

A checkpoint is ``model.safetensors``, or the shards that ``model.safetensors.index.json`` names, or the only
safetensors file of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillhub.errors import IntegrityError, NotFoundError, SkillhubError, UnsafeContentError, UsageError
from skillhub.files import disk_errors, safe_join

if TYPE_CHECKING:  # it needs numpy, and choosing files does not
    from skillhub.tensorfiles import TensorInfo

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_model.safetensors"

_PICKLE_PATTERNS = ("pytorch_model*.bin", "consolidated*.pth", "*.ckpt", "model*.pt", "model*.pth")
_CONVERT = (
    "Convert it once where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) "
    "of transformers writes safetensors."
)


def checkpoint_files(source: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder (or the one file ``source``), sorted by name.

    Raises:
        NotFoundError: the folder does not exist, holds no weights, or lacks a shard that its index names.
        UnsafeContentError: its weights are pickles only, or the index names a path outside the folder.
        UsageError: its weights are GGUF or an adapter only, or several safetensors files come without an index.
        IntegrityError: the index is not valid.
    """
    if source.is_file() and source.suffix == ".safetensors":
        return [source]
    if not source.is_dir():
        raise NotFoundError(
            f"{source} is not a checkpoint folder.", hint="Give the folder that holds config.json and the weights."
        )
    with disk_errors(source):
        names = {path.name for path in source.iterdir() if path.is_file()}
    found = choose_weights(names, lambda: read_index(source).values())
    if INDEX_FILE in names and WEIGHTS_FILE not in names:
        return sorted({_shard(source, name) for name in found})
    if len(found) == 1:
        return [source / found[0]]
    raise _no_weights(source, found)


def choose_weights(names: Collection[str], read_shards: Callable[[], Iterable[str]]) -> list[str]:
    """Return which files at the top of a checkpoint hold its weights, sorted; the rule for folders and repositories.

    They are ``model.safetensors``, else the shards that the index names, else whatever safetensors are no adapter; of
    the last there must be one, which is for the caller to say.

    Args:
        names: of the files at the top.
        read_shards: reads the names of the shards from the index; called where it decides only.
    """
    if WEIGHTS_FILE in names:
        return [WEIGHTS_FILE]
    if INDEX_FILE in names:
        return sorted(set(read_shards()))
    return sorted(name for name in names if name.endswith(".safetensors") and name != ADAPTER_FILE)


def read_index(folder: Path) -> dict[str, str]:
    """Return the ``weight_map`` of a sharded checkpoint: tensor name → file name.

    Raises:
        IntegrityError: the index is not JSON, or its ``weight_map`` is not a table of texts.
    """
    path = folder / INDEX_FILE
    return parse_index(path.read_bytes(), str(path))


def parse_index(data: bytes, where: str) -> dict[str, str]:
    """Return the ``weight_map`` of an index's bytes; errors as for :func:`read_index`."""
    try:
        index: Any = json.loads(data)
        weight_map = index["weight_map"]
        if weight_map and all(isinstance(value, str) for value in weight_map.values()):
            return dict(weight_map)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise _bad_index(where) from error
    raise _bad_index(where)


def read_tensors(files: Iterable[Path]) -> dict[str, TensorInfo]:
    """Return every tensor of some safetensors files, by its name in them.

    Raises:
        IntegrityError: a file is damaged, two files hold the same name, or a tensor that the folder's index names is
            missing from its shard.
        UnsafeContentError: a header is too long.
    """
    from skillhub.tensorfiles import read_header

    files = list(files)
    tensors: dict[str, TensorInfo] = {}
    for path in files:
        for name, info in read_header(path).tensors.items():
            if name in tensors:
                raise IntegrityError(
                    f"The tensor {name!r} is in {tensors[name].file.name} and in {path.name}.",
                    hint="Remove the shards of another save from the folder.",
                )
            tensors[name] = info
    folder = files[0].parent if files else Path()
    if len(files) > 1 and (folder / INDEX_FILE).is_file():
        for name, shard in read_index(folder).items():
            if name not in tensors or tensors[name].file.name != Path(shard).name:
                raise IntegrityError(
                    f"{INDEX_FILE} says that {shard} holds the tensor {name!r}, but it does not.",
                    hint="Fetch or save the checkpoint again.",
                )
    return tensors


def _shard(folder: Path, name: str) -> Path:
    try:
        path = safe_join(folder, name)
    except UnsafeContentError as error:
        raise UnsafeContentError(
            f"{INDEX_FILE} names the shard {name!r}, which is not inside the checkpoint's folder.",
            hint="Do not use this checkpoint; fetch it again from a source you trust.",
            path=name,
        ) from error
    if path.suffix != ".safetensors":
        raise UnsafeContentError(f"{INDEX_FILE} names {name!r}, which is not a safetensors file.", hint=_CONVERT)
    if not path.is_file():
        raise NotFoundError(
            f"The shard {name} that {INDEX_FILE} names is missing from {folder}.",
            hint="The checkpoint was fetched or copied in part; fetch it again.",
            path=str(path),
        )
    return path


def _no_weights(folder: Path, found: list[str]) -> SkillhubError:
    """Return the error for a folder without a usable checkpoint: what is there instead, and the remedy."""
    if found:
        return UsageError(
            f"{folder} holds {len(found)} safetensors files and no {INDEX_FILE}.",
            hint=f"Save the model again with transformers, which writes {WEIGHTS_FILE} or an index.",
        )
    pickles = sorted(path.name for pattern in _PICKLE_PATTERNS for path in folder.glob(pattern))
    if pickles:
        return UnsafeContentError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when it is opened.",
            hint=_CONVERT,
        )
    if (folder / ADAPTER_FILE).is_file():
        return UsageError(
            f"{folder} holds an adapter ({ADAPTER_FILE}), not a whole checkpoint.",
            hint="Merge it into its base model (merge_and_unload of peft) and save the result.",
        )
    if any(folder.glob("*.gguf")):
        return UsageError(
            f"{folder} holds its weights as GGUF only.",
            hint="Use the original safetensors checkpoint, or convert it: "
            "AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=NAME), then save_pretrained(NEW_FOLDER).",
        )
    return NotFoundError(
        f"{folder} holds no weights.", hint=f"A checkpoint has {WEIGHTS_FILE}, or {INDEX_FILE} with its shards."
    )


def _bad_index(where: str) -> IntegrityError:
    return IntegrityError(f"{where} is not a valid checkpoint index.", hint="Fetch or save the checkpoint again.")
