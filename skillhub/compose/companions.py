"""What lies beside the weights of a fused checkpoint: config, tokenizer, chat template, generation settings."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from skillhub.basemodel import TOKENIZER_FILE, read_config, tokenizer_digest
from skillhub.canonical import HEADS, alias_candidates, is_vocabulary_tensor
from skillhub.checkpoints import DTYPES, Checkpoint
from skillhub.compose.merging import Contribution
from skillhub.compose.sharding import FusedTensor
from skillhub.compose.tunedcheckpoints import CheckpointDelta, open_tuned
from skillhub.errors import UsageError
from skillhub.progress import Notice

_log = logging.getLogger(__name__)

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FILES = (TEMPLATE_FILE, "chat_template.json")
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = (
    *(TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *TEMPLATE_FILES,
)
"""Files that say how text becomes tokens and messages become text."""

GENERATION_FILE = "generation_config.json"

TOKENIZERS = ("auto", "base")
"""``auto``: the base's, or that of the one checkpoint that resizes the vocabulary."""


def choose_tokenizer(
    tokenizer: str | Path, checkpoint: Checkpoint, contributions: Sequence[Contribution], notice: Notice | None = None
) -> Path:
    """Return the folder whose tokenizer a fused checkpoint gets.

    Args:
        tokenizer: one of :data:`TOKENIZERS`, or a checkpoint: a folder, or ``repo[@revision]``.
        checkpoint: the base.
        contributions: the packs.
        notice: told what the user should know of the choice; by default that is logged.

    Raises:
        UsageError: the checkpoint that was named has no tokenizer.
        NotFoundError: it does not exist.
    """
    notice = notice or _log.warning
    if str(tokenizer) not in TOKENIZERS:
        return _folder_with_tokenizer(tokenizer)
    resizing = [one for one in contributions if _resizes(one, checkpoint)]
    sources = [one.delta.pack.checkpoint.folder for one in resizing if isinstance(one.delta, CheckpointDelta)]
    if str(tokenizer) == "auto" and sources and _has_tokenizer(sources[0]):
        notice(f"The vocabulary is that of {resizing[0].delta.pack}, and so is the tokenizer.")
        return sources[0]
    for one in resizing:
        notice(
            f"{one.delta.pack} resizes the vocabulary; the tokenizer is still the base's. "
            "If the fine-tune has added tokens, name its folder with --tokenizer (tokenizer=)."
        )
    if str(tokenizer) == "auto":
        _tell_templates(checkpoint, contributions, notice)
    return checkpoint.folder


def copy_companions(staged: Path, checkpoint: Checkpoint, tokenizer: Path) -> None:
    """Copy what belongs beside the weights: everything of the base, but tokenizer and generation settings from their folder."""
    for path in checkpoint.companions():
        if tokenizer != checkpoint.folder and path.name in TOKENIZER_FILES and len(path.parts) == 1:
            continue
        (staged / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.folder / path, staged / path)
    if tokenizer != checkpoint.folder:
        for name in (*TOKENIZER_FILES, GENERATION_FILE):
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, staged / name)


def adapt_config(
    path: Path, checkpoint: Checkpoint, tensors: Sequence[FusedTensor], removed: set[str], dtype: str | None = None
) -> None:
    """Make config.json agree with resized vocabularies, with heads that are tied now or no longer, and with another dtype.

    Args:
        path: the config, a copy of the base's.
        checkpoint: the base.
        tensors: what is written.
        removed: canonical names of the tensors that are left out.
        dtype: tag of the dtype that all floating-point tensors are written in.
    """
    if not path.is_file():
        return
    config = read_config(path.parent)
    before = json.dumps(config)
    sizes = {
        checkpoint.stored[tensor.name].shape[0]: tensor.shape[0]
        for tensor in tensors
        if tensor.name in checkpoint.stored and checkpoint.stored[tensor.name].shape != tensor.shape
    }
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    for part in parts:
        size = part.get("vocab_size")
        if isinstance(size, int) and size in sizes:
            part["vocab_size"] = sizes[size]
        for key in ("dtype", "torch_dtype"):
            if dtype and key in part:
                part[key] = str(DTYPES[dtype]).removeprefix("torch.")
    tied = _tied_now(checkpoint, tensors, removed)
    if tied is not None:
        config["tie_word_embeddings"] = tied
    if json.dumps(config) != before:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _tied_now(checkpoint: Checkpoint, tensors: Sequence[FusedTensor], removed: set[str]) -> bool | None:
    """Return whether the head is tied, where that has changed."""
    added = {tensor.source for tensor in tensors if tensor.source and tensor.source not in checkpoint.tensors}
    candidates = [alias for alias, _ in alias_candidates(set(checkpoint.tensors) | added)]
    if any(alias in removed and alias.endswith(HEADS) for alias in candidates):
        return True
    return False if any(alias in added for alias in candidates) else None


def _resizes(one: Contribution, checkpoint: Checkpoint) -> bool:
    return any(
        name in checkpoint.tensors and checkpoint.tensors[name].shape[:1] != tuple(one.delta.entry(name).shape[:1])
        for name in one.names
        if is_vocabulary_tensor(name)
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _folder_with_tokenizer(source: str | Path) -> Path:
    folder = open_tuned(source).checkpoint.folder
    if not _has_tokenizer(folder):
        raise UsageError(f"{folder} has no tokenizer.", hint="Name the checkpoint whose tokenizer is to be taken.")
    return folder


def _tell_templates(checkpoint: Checkpoint, contributions: Sequence[Contribution], notice: Notice) -> None:
    """Say where a fine-tune has another tokenizer, or a chat template that its base lacks."""
    for one in contributions:
        if not isinstance(one.delta, CheckpointDelta):
            continue
        folder = one.delta.pack.checkpoint.folder
        differs = None not in (found := (tokenizer_digest(folder), tokenizer_digest(checkpoint.folder)))
        if differs and found[0] != found[1]:
            notice(f"The tokenizer of {one.delta.pack} is not the base's, which is the one that is kept.")
        elif _has_template(folder) and not _has_template(checkpoint.folder):
            notice(f"{one.delta.pack} has a chat template and the base has none; to keep it: --tokenizer {folder}.")


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in TEMPLATE_FILES):
        return True
    path = folder / TOKENIZER_CONFIG_FILE
    return path.is_file() and b'"chat_template"' in path.read_bytes()
