"""A PEFT adapter as a folder: ``adapter_config.json`` and ``adapter_model.safetensors``, as the peft library saves them.

Only what can be added to a base model's weights is read: LoRA in its plain forms, with biases and whole modules that
were trained beside it. Whatever else peft can do is refused by name, here, before anything is installed or grafted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from skillhub.checkpointfiles import ADAPTER_FILE
from skillhub.documents import decode_json, field_error
from skillhub.errors import IntegrityError, NotFoundError, UnsafeContentError, UsageError
from skillhub.fields import Label
from skillhub.files import disk_errors, expanded
from skillhub.lockfile import files_digest
from skillhub.manifest import MANIFEST_FILE, FileEntry
from skillhub.names import PackName
from skillhub.packs import file_entry

CONFIG_FILE = "adapter_config.json"
PICKLE_FILE = "adapter_model.bin"
FILES = (CONFIG_FILE, ADAPTER_FILE)
"""The files of an adapter that count; tokenizers, checkpoints of training and cards beside them do not."""

MAX_CONFIG_BYTES = 1 << 20
MAX_PATTERNS = 4096
"""Most entries of ``alpha_pattern``."""

_SAVE_AGAIN = "Ask its publisher for it as saved by peft with save_pretrained(…)."
_NOT_ADDITIVE = "Merge it into its base with peft (merge_and_unload), then pack the result: skillhub pack."

_ACTS_LATE = (
    "It acts on what follows its invocation alone, as no change of the weights does: train a plain LoRA instead."
)
_NO_WEIGHTS = "It changes what a model is given, not its weights, and a pack holds weights: train a LoRA instead."

_PROMPT_KINDS = frozenset(
    {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"}
)
"""Kinds that peft cannot merge."""

_REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "layer_replication": "replicated layers",
    "megatron_config": "Megatron layers",
    "monteclora_config": "Monte Carlo LoRA",
    "target_parameters": "LoRA on parameters without a layer of their own",
    "trainable_token_indices": "single trainable tokens",
}
"""Settings of a LoRA that change what it computes into something that is not read, and their names for people."""

_ADDITIVE_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin training that leave the base's weights alone; the others change the base that the adapter is added to."""

_STEP = re.compile(r"(\\[.d]|[\w.-])([*+?]?)", re.ASCII)
_MAX_PATTERN = 200
_MOST_EXPRESSIONS = 16
_NAME = re.compile(r"\^?[\w.-]+", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"[\w.][\w./-]*", re.ASCII)

_Number = Annotated[float, Meta(ge=-1e6, le=1e6)]


class AdapterConfig(Struct, frozen=True, kw_only=True):
    """What ``adapter_config.json`` says, as far as it matters here; other keys are ignored.

    The rank is that of the factors themselves, and which modules have any is seen from their names.

    Attributes:
        peft_type: always ``LORA``.
        lora_alpha: numerator of the factor that the product is scaled with.
        use_rslora: divide by the rank's square root instead of the rank.
        alpha_pattern: name of a module, or the end of one, → its ``lora_alpha``; simple regular expressions will do.
        base_model_name_or_path: the base model, as whoever trained the adapter named it.
        revision: of the base model.
    """

    peft_type: Label
    lora_alpha: _Number = 8
    use_rslora: bool = False
    alpha_pattern: dict[Label, _Number] | None = None
    base_model_name_or_path: Label | None = None
    revision: Label | None = None

    @property
    def base(self) -> str | None:
        """Repository of the base model; None where the adapter names none, or a folder on another machine."""
        name = self.base_model_name_or_path or ""
        return name if _REPOSITORY.fullmatch(name) else None

    @property
    def base_revision(self) -> str | None:
        """Branch, tag or commit of the base model's repository, where the adapter says."""
        known = self.base is not None and _REVISION.fullmatch(self.revision or "")
        return self.revision if known else None

    def scale(self, module: str, rank: int) -> float:
        """Return what the product of a module's factors is multiplied with.

        Args:
            module: the module's name in the model.
            rank: of its factors.
        """
        alpha = _first_match(self.alpha_pattern or {}, module, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder that was opened: its config is valid, its weights have not been read.

    Attributes:
        folder: the folder.
        config: what its config says.
        name: the repository's name, or the folder's without an owner.
        version: the first digits of its commit; empty for a folder that was never published.
    """

    folder: Path
    config: AdapterConfig
    name: PackName
    version: str = ""

    @cached_property
    def digest(self) -> str:
        """What identifies it: the digest of its files' names, sizes and SHA-256; reads them through once."""
        with disk_errors(self.folder):
            return files_digest(adapter_files(self.folder))

    @property
    def weights(self) -> Path:
        """The file with the factors."""
        return self.folder / ADAPTER_FILE

    @property
    def declared_base(self) -> str:
        """What it says of its base, for people; empty where it says nothing."""
        revision = self.config.base_revision
        return (self.config.base or "") + (f" at {revision}" if revision else "")

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


def open_adapter(folder: str | Path, *, name: PackName | None = None, version: str = "") -> Adapter:
    """Open an adapter's folder; only its config is read.

    Args:
        folder: the folder.
        name: of its repository; None takes the folder's name.
        version: the first digits of its commit, where it has one.

    Raises:
        NotFoundError: the folder or a file is missing.
        UnsafeContentError: its weights are a pickle.
        UsageError: it is an adapter of a kind that is not read.
        IntegrityError: its config is not valid.
        DiskError: the config may not be read.
    """
    folder = expanded(folder)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise NotFoundError(
            f"{folder} is not an adapter: it has no {CONFIG_FILE}.",
            hint="Name the folder that peft's save_pretrained(…) wrote.",
            path=str(folder),
        )
    with disk_errors(path), path.open("rb") as stream:
        config = parse_config(stream.read(MAX_CONFIG_BYTES + 1), where=str(path))
    if not (folder / ADAPTER_FILE).is_file():
        raise missing_weights(str(folder), is_pickled=(folder / PICKLE_FILE).is_file())
    return Adapter(folder, config, name or PackName(None, folder.resolve().name), version)


def is_adapter(folder: Path) -> bool:
    """Say whether a folder is one of an adapter, and not of a pack."""
    return (folder / CONFIG_FILE).is_file() and not (folder / MANIFEST_FILE).is_file()


def adapter_files(folder: Path) -> list[FileEntry]:
    """Return the entries of an adapter's files, sorted by path; each is read through for its digest."""
    return [file_entry(folder, path) for path in sorted(FILES)]


def missing_weights(where: str, *, is_pickled: bool) -> NotFoundError | UnsafeContentError:
    """Return the error for an adapter without a safetensors file."""
    if is_pickled:
        return UnsafeContentError(
            f"{where} has its weights only as a pickle ({PICKLE_FILE}), which can run code when it is read.",
            hint="Load it once in a place you trust and save it with peft's save_pretrained(…), which writes safetensors.",
        )
    return NotFoundError(f"{where} has a {CONFIG_FILE} and no {ADAPTER_FILE}.", hint=_SAVE_AGAIN)


def parse_config(data: bytes, *, where: str = CONFIG_FILE) -> AdapterConfig:
    """Read an adapter's config.

    Args:
        data: the file's bytes.
        where: what to call the file in messages.

    Raises:
        UsageError: it is an adapter of a kind that is not read: another type than LoRA, or a LoRA whose effect is not a
            difference of weights that is known without the base.
        IntegrityError: it is not JSON, or a field is missing or bad (the message has its path).
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise IntegrityError(f"{where} has more than {MAX_CONFIG_BYTES} bytes, which no config has.", hint=_SAVE_AGAIN)
    try:
        document = decode_json(data, dict[str, Any])
        _check_type(document, where)
        config = msgspec.convert(document, AdapterConfig)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{where} is not a valid config: {field_error(error)}.", hint=_SAVE_AGAIN) from error
    _refuse_other_kinds(document, config, where)
    return config


def _check_type(document: Mapping[str, Any], where: str) -> None:
    kind = msgspec.convert(document.get("peft_type"), Label)
    if kind.upper() != "LORA":
        raise UsageError(
            f"{where} is of an adapter of the type {kind}; only LoRA adapters are read.",
            hint=_NO_WEIGHTS if kind.upper() in _PROMPT_KINDS else _NOT_ADDITIVE,
            type=kind,
        )


def _refuse_other_kinds(document: Mapping[str, Any], config: AdapterConfig, where: str) -> None:
    """Refuse settings that make a LoRA something else than a product of factors that is added to the weights."""
    kinds = [name for key, name in _REFUSED.items() if document.get(key)]
    known = {*_REFUSED, "use_rslora"}
    kinds += [f"a setting {key} that is not known" for key in sorted(document) if _is_switch(key, document, known)]
    start = document.get("init_lora_weights")
    if start not in _ADDITIVE_STARTS:
        kinds.append(f"init_lora_weights={str(start)[:40]!r}, which changes the base's weights")
    if _is_unread(config.alpha_pattern or {}):
        kinds.append("an alpha_pattern of more than names and simple expressions")
    if kinds:
        acts_late = "alora_invocation_tokens" in document and kinds[0] == _REFUSED["alora_invocation_tokens"]
        raise UsageError(
            f"{where} is of an adapter with {kinds[0]}, which is not read.",
            hint=_ACTS_LATE if acts_late else _NOT_ADDITIVE,
            feature=kinds[0],
        )


def _is_switch(key: str, document: Mapping[str, Any], known: set[str]) -> bool:
    return key.startswith("use_") and key.isidentifier() and key not in known and bool(document[key])


def _is_unread(patterns: Mapping[str, float]) -> bool:
    """Say whether there is a regular expression among the patterns that is not read, or too much of them."""
    expressions = [pattern for pattern in patterns if not _is_name(pattern)]
    too_many = len(patterns) > MAX_PATTERNS or len(expressions) > _MOST_EXPRESSIONS
    return too_many or any(_steps(pattern) is None for pattern in expressions)


def _first_match(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Return the value of the first pattern that matches the end of a module's name, as peft chooses it."""
    parts = module.split(".")
    ends = {".".join(parts[first:]) for first in range(len(parts))} | {f"^{module}"}
    for pattern, value in patterns.items():
        if pattern in ends or (not _is_name(pattern) and _matches(pattern, module)):
            return value
    return default


def _is_name(pattern: str) -> bool:
    return _NAME.fullmatch(pattern) is not None


@lru_cache(maxsize=4 * _MOST_EXPRESSIONS)
def _steps(pattern: str) -> tuple[tuple[str, str], ...] | None:
    """Return the characters that an expression wants, each with how often; None where there is more to it."""
    bare = pattern.removeprefix("^").removesuffix("$")
    steps = tuple(_STEP.findall(bare))
    readable = len(bare) <= _MAX_PATTERN and "".join(map("".join, steps)) == bare
    return steps if readable else None


def _matches(pattern: str, text: str) -> bool:
    """Say whether an expression matches the end of a name that begins after a dot, or all of it.

    All places that the expression may have come to are followed at once. ``re`` would try one way after the other, which
    an expression of a few stars makes take for ever; and it comes from a stranger.
    """
    places = {0} if pattern.startswith("^") else {0, *(at + 1 for at, letter in enumerate(text) if letter == ".")}
    for wanted, repeat in _steps(pattern) or ():
        after = _advance(places, wanted, text)
        if repeat in ("*", "+"):
            new = after
            while new := _advance(new, wanted, text) - after:
                after = after | new
        places = places | after if repeat in ("*", "?") else after
    return len(text) in places


def _advance(places: set[int], wanted: str, text: str) -> set[int]:
    return {at + 1 for at in places if at < len(text) and _fits(wanted, text[at])}


def _fits(wanted: str, letter: str) -> bool:
    if wanted == "\\d":
        return letter.isdecimal()
    return wanted == "." or wanted[-1] == letter
