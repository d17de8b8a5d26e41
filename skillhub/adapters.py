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
from skillhub.files import disk_errors
from skillhub.lockfile import files_digest
from skillhub.manifest import FileEntry
from skillhub.names import PackName
from skillhub.packs import file_entry

CONFIG_FILE = "adapter_config.json"
PICKLE_FILE = "adapter_model.bin"
FILES = (CONFIG_FILE, ADAPTER_FILE)
"""The files of an adapter that count; tokenizers, checkpoints of training and cards beside them do not."""

MAX_CONFIG_BYTES = 1 << 20
MAX_PATTERNS = 4096
"""Most entries of ``rank_pattern`` and of ``alpha_pattern``."""

_SAVE_AGAIN = "Ask its publisher for it as saved by peft with save_pretrained(…)."
_NOT_ADDITIVE = "Merge it into its base with peft (merge_and_unload), then pack the result: skillhub pack."

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

_QUANTIFIER = re.compile(r"[*+?{]")
_QUANTIFIED_GROUP = re.compile(r"\)[*+?{]")
_MOST_QUANTIFIERS = 2
_MOST_QUANTIFIED = 16
_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"[\w.][\w./-]*", re.ASCII)

_Number = Annotated[float, Meta(ge=-1e6, le=1e6)]
_Rank = Annotated[int, Meta(ge=1, le=1 << 20)]


class AdapterConfig(Struct, frozen=True, kw_only=True):
    """What ``adapter_config.json`` says, as far as it matters here; other keys are ignored.

    Attributes:
        peft_type: always ``LORA``.
        r: rank of the factors.
        lora_alpha: numerator of the factor that the product is scaled with.
        use_rslora: divide by the rank's square root instead of the rank.
        rank_pattern: regular expression for the end of a module's name → its rank.
        alpha_pattern: the same for ``lora_alpha``.
        fan_in_fan_out: the layers store their weights transposed.
        bias: which biases were trained: ``none``, ``all`` or ``lora_only``.
        modules_to_save: modules that were trained as a whole.
        target_modules: modules that have factors: names, or a regular expression.
        base_model_name_or_path: the base model, as whoever trained the adapter named it.
        revision: of the base model.
    """

    peft_type: Label
    r: _Rank = 8
    lora_alpha: _Number = 8
    use_rslora: bool = False
    rank_pattern: dict[Label, _Rank] | None = None
    alpha_pattern: dict[Label, _Number] | None = None
    fan_in_fan_out: bool = False
    bias: Label = "none"
    modules_to_save: list[Label] | None = None
    target_modules: list[Label] | Label | None = None
    base_model_name_or_path: Label | None = None
    revision: Label | None = None

    def __post_init__(self) -> None:
        for field in ("rank_pattern", "alpha_pattern"):
            _check_patterns(field, getattr(self, field) or {})

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

    def rank(self, module: str) -> int:
        """Return the rank of the factors of a module, by its name in the model."""
        return _matching(self.rank_pattern or {}, module, self.r)

    def scale(self, module: str) -> float:
        """Return what the product of a module's factors is multiplied with."""
        rank, alpha = self.rank(module), _matching(self.alpha_pattern or {}, module, self.lora_alpha)
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
        """What it says of its base, for people."""
        revision = self.config.base_revision
        return (self.config.base or "no base") + (f" at {revision}" if revision else "")

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
    folder = Path(folder).expanduser()
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
    return (folder / CONFIG_FILE).is_file()


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
        config = msgspec.convert(document, AdapterConfig) if _is_lora(document, where) else None
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{where} is not a valid config: {field_error(error)}.", hint=_SAVE_AGAIN) from error
    assert config is not None
    _refuse_other_kinds(document, where)
    return config


def _is_lora(document: Mapping[str, Any], where: str) -> bool:
    kind = msgspec.convert(document.get("peft_type"), Label)
    if kind.upper() != "LORA":
        raise UsageError(
            f"{where} is of an adapter of the type {kind}; only LoRA adapters are read.", hint=_NOT_ADDITIVE, type=kind
        )
    return True


def _refuse_other_kinds(document: Mapping[str, Any], where: str) -> None:
    """Refuse settings that make a LoRA something else than a product of factors that is added to the weights."""
    kinds = [name for key, name in _REFUSED.items() if document.get(key)]
    known = {*_REFUSED, "use_rslora"}
    kinds += [f"a setting {key} that is not known" for key in sorted(document) if _is_switch(key, document, known)]
    start = document.get("init_lora_weights")
    if start not in _ADDITIVE_STARTS:
        kinds.append(f"init_lora_weights={str(start)[:40]!r}, which changes the base's weights")
    if kinds:
        raise UsageError(
            f"{where} is of an adapter with {kinds[0]}, which is not read.", hint=_NOT_ADDITIVE, feature=kinds[0]
        )


def _is_switch(key: str, document: Mapping[str, Any], known: set[str]) -> bool:
    return key.startswith("use_") and key.isidentifier() and key not in known and bool(document[key])


def _check_patterns(field: str, patterns: Mapping[str, Any]) -> None:
    """Refuse regular expressions that are none, or that could take ages to match.

    Raises:
        ValueError: the message begins with the field, as ``field_error`` expects.
    """
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(f".{field}: it has {len(patterns)} entries; at most {MAX_PATTERNS} are read")
    quantified = [pattern for pattern in patterns if _QUANTIFIER.search(pattern)]
    for pattern in quantified:
        if len(_QUANTIFIER.findall(pattern)) > _MOST_QUANTIFIERS or _QUANTIFIED_GROUP.search(pattern):
            raise ValueError(f".{field}: the pattern {pattern[:80]!r} repeats too much")
    if len(quantified) > _MOST_QUANTIFIED:
        raise ValueError(
            f".{field}: {len(quantified)} of its patterns repeat something; at most {_MOST_QUANTIFIED} may"
        )
    for pattern in patterns:
        try:
            _compiled(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f".{field}: {pattern[:80]!r} is not a regular expression") from error


@lru_cache(maxsize=2 * MAX_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of a module's name, as peft chooses it."""
    return next((value for pattern, value in patterns.items() if _compiled(pattern).match(module)), default)
