"""Facts about a base model that its folder tells without torch: architecture, dtype, vocabulary size, tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skillhub.canonical import is_embedding
from skillhub.documents import canonical_json
from skillhub.errors import IntegrityError
from skillhub.files import sha256_of_bytes
from skillhub.fingerprint import FLOAT_KIND, BaseRecord, packaging_digests
from skillhub.manifest import BaseInfo

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"

TOKENIZER_PARTS = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")
"""The parts of ``tokenizer.json`` that decide about ids and text; padding and truncation are the caller's."""


def base_info(
    folder: Path, record: BaseRecord, *, repository: str | None = None, revision: str | None = None
) -> BaseInfo:
    """Return what a manifest says about a base model.

    Args:
        folder: the base's checkpoint folder, or its one safetensors file.
        record: its fingerprint and tensors.
        repository: where it came from on the Hub, if it did.
        revision: the commit.

    Raises:
        IntegrityError: config.json or tokenizer.json is not JSON.
    """
    weights = folder
    folder = folder.parent if folder.is_file() else folder
    return BaseInfo(
        fingerprint=record.fingerprint,
        repo=repository,
        revision=revision,
        architecture=architecture_of(read_config(folder)),
        parameters=sum(tensor.elements for tensor in record.tensors),
        dtype=main_dtype((tensor.dtype, tensor.elements) for tensor in record.tensors),
        tokenizer=tokenizer_digest(folder),
        vocabulary_size=vocabulary_size(record),
        files=[packaging_digests(weights)],
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of config.json; empty where there is none.

    Raises:
        IntegrityError: it is not a JSON object.
    """
    return read_object(folder / CONFIG_FILE) or {}


def architecture_of(config: dict[str, Any]) -> str | None:
    """Return the class that a config names first, such as ``LlamaForCausalLM``, else its model type."""
    names = config.get("architectures") or [config.get("model_type")]
    return names[0] if isinstance(names, list) and isinstance(names[0], str) else None


def main_dtype(sizes: Iterable[tuple[str, int]]) -> str | None:
    """Return the dtype tag of most weights, given (dtype tag, elements) of each tensor."""
    totals: Counter[str] = Counter()
    for dtype, elements in sizes:
        totals[dtype] += elements
    return max(totals, key=lambda dtype: (totals[dtype], dtype), default=None)


def vocabulary_size(record: BaseRecord) -> int | None:
    """Return the rows of the input embedding (the largest, if there are several), or None without one."""
    rows = [
        tensor.shape[0]
        for tensor in record.tensors
        if tensor.kind == FLOAT_KIND and len(tensor.shape) == 2 and is_embedding(tensor.name)
    ]
    return max(rows, default=None)


def tokenizer_digest(folder: Path) -> str | None:
    """Return the hex SHA-256 of what decides about token ids and text in tokenizer.json; None where there is none.

    Merges count the same whether written as ``"a b"`` or as ``["a", "b"]``, as different versions of the tokenizers
    library do.

    Raises:
        IntegrityError: the file is not a JSON object.
    """
    tokenizer = read_object(folder / TOKENIZER_FILE)
    if tokenizer is None:
        return None
    parts = {name: tokenizer.get(name) for name in TOKENIZER_PARTS}
    model = parts["model"]
    if isinstance(model, dict) and isinstance(model.get("merges"), list):
        merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        parts["model"] = {**model, "merges": merges}
    try:
        return sha256_of_bytes(canonical_json(parts))
    except ValueError as error:
        raise _damaged(folder / TOKENIZER_FILE) from error


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object that a file of a model holds; None where there is no such file.

    Raises:
        IntegrityError: it holds something else.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _damaged(path: Path) -> IntegrityError:
    return IntegrityError(f"{path} is not a JSON object.", hint="Fetch or save the base model again.", file=str(path))
