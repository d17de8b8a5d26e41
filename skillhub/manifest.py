"""The manifest of a pack, ``skillpack.json``: canonical JSON whose SHA-256 is the release's identity.

A pack carries one :class:`Variant` per base model; a variant names its base, how the delta was encoded, its files with
their digests, and how it was evaluated. Reading is strict: an error names the path of the bad field, such as
``$.variants[0].files[3].size``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from skillhub.errors import IntegrityError, NewerSchemaError, SkillhubError
from skillhub.files import check_relative_path, sha256_of_bytes
from skillhub.names import PackName, is_bare_name, parse_requirement, parse_version

MANIFEST_SCHEMA = 0
MANIFEST_FILE = "skillpack.json"
MAX_MANIFEST_BYTES = 64 << 20

_ASK_PUBLISHER = "Download the pack again; if that does not help, tell its publisher."

Result = TypeVar("Result")

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
FingerprintText = Annotated[str, Meta(pattern=r"^skb1:[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0)]
Text = Annotated[str, Meta(max_length=10_000)]


class FileEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a variant.

    Attributes:
        path: relative to the release's folder, with forward slashes.
        size: bytes.
        sha256: hex digest of the whole file.
    """

    path: str
    size: Count
    sha256: Sha256

    def __post_init__(self) -> None:
        _checked(check_relative_path, self.path)


class TensorEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one tensor was encoded and how well.

    Attributes:
        shape: of the tuned tensor.
        change: ``delta`` (add to the base's tensor), ``added`` (the base has none) or ``removed``.
        codecs: ids of the parts, in the order in which they are summed.
        bytes: payload size.
        relative_error: squared error of the decoded delta over the delta's squared norm (0 where exact).
        max_error: largest absolute error of one element.
        digest: SHA-256 of the decoded delta as little-endian fp32 (of the stored bytes where values are set).
    """

    shape: list[Count]
    change: Annotated[str, Meta(pattern=r"^(delta|added|removed)\Z")]
    codecs: list[str]
    bytes: Count
    relative_error: float
    max_error: float
    digest: Sha256 | None = None


class CodecInfo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a variant's delta was encoded.

    Attributes:
        preset: the preset's name, or ``budget``.
        bits_per_weight: payload bits over the base's parameters.
        tensors: canonical name → how that tensor was encoded; unchanged tensors are left out.
    """

    preset: str
    bits_per_weight: float
    tensors: dict[str, TensorEntry]


class BaseInfo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base model that a variant belongs to.

    Attributes:
        fingerprint: ``skb1:…`` over its weights.
        repo: repository on the Hub, where known.
        revision: commit of that repository, where known.
        architecture: class name from ``config.json``.
        parameters: number of weights.
        dtype: of most weights, in safetensors' words (``BF16``).
        tokenizer: digest of what decides about token ids and text; None without a tokenizer.
        vocabulary_size: rows of the input embedding, where there is one.
        files: one object per known packaging of the weights: file name → SHA-256.
    """

    fingerprint: FingerprintText
    repo: str | None = None
    revision: str | None = None
    architecture: str | None = None
    parameters: Count = 0
    dtype: str | None = None
    tokenizer: Sha256 | None = None
    vocabulary_size: Count | None = None
    files: list[dict[str, Sha256]] = []


class RouterInfo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a routing card was made with; the card itself is ``router.safetensors``.

    Attributes:
        path: the card's path, one of the variant's files.
        layer: index of the base's layer whose hidden states were taken.
        pooling: how the states of a prompt became one vector.
        template: the template put around each prompt; None for bare text.
        rank: dimensions of the subspace.
        threshold: score below which an input belongs to no pack.
    """

    path: str
    layer: Count
    pooling: str
    template: str | None = None
    rank: Count
    threshold: float


class Evaluation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured score of the base, of the tuned model, and of the base with the pack.

    Attributes:
        task: what was measured, such as ``math held-out``.
        metric: how, such as ``nll`` or ``exact``.
        base: score of the base model.
        tuned: score of the fine-tuned model.
        pack: score of the base with the pack grafted.
        rows: number of examples.
    """

    task: str
    metric: str
    base: float
    tuned: float | None
    pack: float
    rows: Count


class Variant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pack's payload for one base."""

    base: BaseInfo
    codec: CodecInfo
    files: list[FileEntry]
    evaluation: list[Evaluation] = []
    router: RouterInfo | None = None

    @property
    def folder(self) -> str:
        """Folder of the variant inside the release, ``variants/<fp12>``."""
        return variant_folder(self.base.fingerprint)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


class Skill(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the pack teaches.

    Attributes:
        tags: short words for search.
        prompts: a few example inputs.
    """

    tags: list[str] = []
    prompts: list[Text] = []


class Signer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key whose signature (in the release event) covers this manifest's digest."""

    algorithm: str
    public_key: str


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a pack says about itself.

    Attributes:
        name: bare name; the owner comes from where the pack was found.
        version: PEP 440, normalized, without a local part.
        requires: requirements with owner, such as ``acme/chat-pack>=1``.
        conflicts: the same, for packs that must not be installed together with this one.
        provenance: free facts: what made the pack and from what.
    """

    schema: int
    name: str
    version: str
    summary: Text = ""
    license: str | None = None
    requires: list[str] = []
    conflicts: list[str] = []
    skills: Skill = Skill()
    variants: list[Variant] = []
    provenance: dict[str, str] = {}
    signer: Signer | None = None

    def __post_init__(self) -> None:
        if not is_bare_name(self.name):
            raise ValueError(f"{self.name!r} is not a pack's bare name")
        _checked(parse_version, self.version)
        for text in [*self.requires, *self.conflicts]:
            if _checked(parse_requirement, text).pack.owner is None:
                raise ValueError(f"{text!r} lacks an owner: write OWNER/{text}")
        fingerprints = [variant.base.fingerprint for variant in self.variants]
        if len({variant_folder(fingerprint) for fingerprint in fingerprints}) != len(fingerprints):
            raise ValueError("two variants are for the same base")
        paths = [entry.path.casefold() for variant in self.variants for entry in variant.files]
        if len(set(paths)) != len(paths):
            raise ValueError("two files have the same path")

    def to_bytes(self) -> bytes:
        """Return the canonical JSON: sorted keys, UTF-8, no NaN."""
        return canonical_json(msgspec.to_builtins(self))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: the release's identity."""
        return sha256_of_bytes(self.to_bytes())

    def full_name(self, owner: str | None) -> PackName:
        """Return the pack's name under ``owner``."""
        return PackName(owner, self.name)

    def variant_for(self, fingerprint: str) -> Variant | None:
        """Return the variant for a base, or None."""
        return next((variant for variant in self.variants if variant.base.fingerprint == fingerprint), None)


def _checked(check: Callable[[str], Result], text: str) -> Result:
    """Run one of our checks inside msgspec's decoding, which adds the field's path to a ValueError only."""
    try:
        return check(text)
    except SkillhubError as error:
        raise ValueError(error.message) from error


def variant_folder(fingerprint: str) -> str:
    """Return ``variants/<fp12>``, the folder of the variant for a base."""
    return f"variants/{fingerprint.removeprefix('skb1:')[:12]}"


def canonical_json(value: Any) -> bytes:
    """Return JSON with one form only: sorted keys, no spaces, UTF-8, a final newline.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def parse_manifest(data: bytes, *, where: str = MANIFEST_FILE) -> Manifest:
    """Read a manifest.

    Args:
        data: the file's bytes.
        where: what to call the file in messages.

    Raises:
        NewerSchemaError: the manifest is of a schema that this version does not read.
        IntegrityError: a field is missing, unknown or bad (the message has its path), or the JSON is not canonical.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise IntegrityError(f"{where} is {len(data)} bytes long, which no manifest is.", hint=_ASK_PUBLISHER)
    try:
        check_schema(data, MANIFEST_SCHEMA, where)
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{where} is not a valid manifest: {field_error(error)}.", hint=_ASK_PUBLISHER) from error
    if manifest.to_bytes() != data:
        raise IntegrityError(
            f"{where} is not in canonical form, so its digest does not identify it.",
            hint="Build the pack again with `skillhub pack` instead of editing the manifest.",
        )
    return manifest


class _Schema(Struct):
    schema: int


def check_schema(data: bytes, supported: int, where: str) -> None:
    """Refuse JSON whose ``schema`` is not ``supported``.

    Raises:
        NewerSchemaError: it is another number.
        msgspec.MsgspecError: the JSON cannot be read or has no such field.
    """
    found = msgspec.json.decode(data, type=_Schema).schema
    if found != supported:
        raise NewerSchemaError(
            f"{where} has schema {found}; this version of skillhub reads schema {supported}.",
            hint="Upgrade skillhub: pip install --upgrade skillhub-packs.",
            schema=found,
        )


def field_error(error: msgspec.MsgspecError) -> str:
    """Return msgspec's message with the field's path first: ``$.version: Expected `str`, got `int```."""
    text, _, path = str(error).partition(" - at ")
    return f"{path.strip('`') or '$'}: {re.sub(r'[.]$', '', text)}"
