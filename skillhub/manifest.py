"""The manifest of a pack, ``skillpack.json``: canonical JSON whose SHA-256 is the release's identity.

A pack carries one :class:`Variant` per base model; a variant names its base, how the delta was encoded, its files with
their digests, and how it was evaluated. Reading is strict: an error names the path of the bad field, such as
``$.variants[0].files[3].size``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from skillhub.documents import canonical_json, check_schema, decode_json, field_error
from skillhub.errors import IntegrityError, SkillhubError, UnsafeContentError
from skillhub.fields import Count, FingerprintText, Label, Sha256, Text
from skillhub.files import check_relative_path, sha256_of_bytes
from skillhub.names import PackName, is_bare_name, parse_requirement, parse_version
from skillhub.routingcards import RouterInfo

MANIFEST_SCHEMA = 0
MANIFEST_FILE = "skillpack.json"
BASE_RECORD_FILE = "base.json.zst"
MAX_MANIFEST_BYTES = 64 << 20

_ASK_PUBLISHER = "Download the pack again; if that does not help, tell its publisher."

Result = TypeVar("Result")


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
        _checked("path", check_relative_path, self.path)


class TensorEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one tensor was encoded and how well.

    Attributes:
        shape: of the tuned tensor.
        change: ``delta`` (add to the base's tensor), ``added`` (the base has none) or ``removed``.
        codecs: ids of the parts, in the order in which they are summed.
        bytes: payload size.
        relative_error: squared error of the decoded delta over the delta's squared norm (0 where exact).
        max_error: largest absolute error of one element of the decoded fp32 delta; 0 where it, or the tuned values, are stored
            bit for bit. Adding such a delta gives the tuned bf16 or fp16 values; wider ones to within fp32's rounding.
        digest: SHA-256 of the decoded delta as little-endian fp32 (of the stored bytes where values are set, or where an adapter's
            factors are stored, which multiply to the same delta only within ``max_error``).
    """

    shape: list[Count]
    change: Annotated[str, Meta(pattern=r"^(delta|added|removed)\Z")]
    codecs: list[Label]
    bytes: Count
    relative_error: float
    max_error: float
    digest: Sha256 | None = None


class CodecInfo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a variant's delta was encoded.

    Attributes:
        preset: the preset's name, ``budget``, or ``max-kl`` where a divergence was asked for.
        bits_per_weight: payload bits over the base's parameters.
        tensors: canonical name → how that tensor was encoded; unchanged tensors are left out.
        calibrated: whether prompts told which errors matter. Left out where that could not be: a preset that has no use for it, an
            adapter's factors, packs from before this field.
    """

    preset: Label
    bits_per_weight: float
    tensors: dict[Label, TensorEntry]
    calibrated: bool | UnsetType = UNSET

    @property
    def way(self) -> str:
        """The preset and, where that is known, whether it was calibrated, in words: ``near, calibrated``."""
        words = {True: ", calibrated", False: ", not calibrated", UNSET: ""}
        return f"{self.preset}{words[self.calibrated]}"


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
    repo: Label | None = None
    revision: Label | None = None
    architecture: Label | None = None
    parameters: Count = 0
    dtype: Label | None = None
    tokenizer: Sha256 | None = None
    vocabulary_size: Count | None = None
    files: list[dict[Label, Sha256]] = []


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

    task: Label
    metric: Label
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

    def __post_init__(self) -> None:
        for number, entry in enumerate(self.files):
            if not entry.path.startswith(f"{self.folder}/"):
                raise ValueError(f".files[{number}].path: {entry.path!r} is not in the variant's folder {self.folder}")
            _checked(f"files[{number}].path", check_kind, entry.path)
        if self.router and self.router.path not in [entry.path for entry in self.files]:
            raise ValueError(f".router.path: {self.router.path!r} is not one of the variant's files")

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

    tags: list[Label] = []
    prompts: list[Text] = []


class Signer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key whose signature (in the release event) covers this manifest's digest."""

    algorithm: Label
    public_key: Label


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
    license: Label | None = None
    requires: list[str] = []
    conflicts: list[str] = []
    skills: Skill = Skill()
    variants: list[Variant] = []
    provenance: dict[Label, Text] = {}
    signer: Signer | None = None

    def __post_init__(self) -> None:
        if not is_bare_name(self.name):
            raise ValueError(f".name: {self.name!r} is not a pack's bare name (letters, digits, '.', '_' and '-')")
        _checked("version", parse_version, self.version)
        check_requirements("requires", self.requires)
        check_requirements("conflicts", self.conflicts)
        folders = [variant.folder for variant in self.variants]
        if len(set(folders)) != len(folders):
            raise ValueError(".variants: two are for the same base")
        _check_distinct(entry.path for variant in self.variants for entry in variant.files)

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


def _checked(field: str, check: Callable[[str], Result], text: str) -> Result:
    """Run one of our checks inside msgspec's decoding, which adds the object's path to a ValueError only."""
    try:
        return check(text)
    except SkillhubError as error:
        raise ValueError(f".{field}: {error.message}") from error


def check_kind(path: str) -> None:
    """Check that a variant's file is of a kind that is known to be harmless: data that nothing executes.

    Raises:
        UnsafeContentError: it is neither a safetensors file nor the base's record.
    """
    if not path.endswith((".safetensors", f"/{BASE_RECORD_FILE}")):
        raise UnsafeContentError(
            f"{path!r} is neither a safetensors file nor {BASE_RECORD_FILE}, and a variant holds nothing else.",
            hint="Do not use this pack; tell its publisher.",
            path=path,
        )


def check_requirements(field: str, texts: list[str]) -> None:
    """Check that every requirement can be read and names its pack's owner.

    Raises:
        ValueError: one does not; the message begins with the field and the place in it, as `field_error` expects.
    """
    for number, text in enumerate(texts):
        if _checked(f"{field}[{number}]", parse_requirement, text).pack.owner is None:
            raise ValueError(f".{field}[{number}]: {text!r} lacks an owner: write OWNER/{text}")


def _check_distinct(paths: Iterable[str]) -> None:
    """Check that every path can be a file of its own, also where case and accents' forms do not count."""
    files: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        parts = unicodedata.normalize("NFC", path).casefold().split("/")
        folders.update("/".join(parts[:length]) for length in range(1, len(parts)))
        if "/".join(parts) in files:
            raise ValueError(f".variants: two files have the path {path!r}")
        files.add("/".join(parts))
    if both := files & folders:
        raise ValueError(f".variants: {min(both)!r} is both a file and a folder")


def variant_folder(fingerprint: str) -> str:
    """Return ``variants/<fp12>``, the folder of the variant for a base."""
    return f"variants/{fingerprint.removeprefix('skb1:')[:12]}"


def parse_manifest(data: bytes, *, where: str = MANIFEST_FILE) -> Manifest:
    """Read a manifest.

    Args:
        data: the file's bytes.
        where: what to call the file in messages.

    Raises:
        NewerSchemaError: the manifest is of a schema that this version does not read.
        IntegrityError: a field is missing, unknown or bad (the message has its path), or the JSON is not canonical.
        UnsafeContentError: a file's path leaves its folder.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise IntegrityError(f"{where} is {len(data)} bytes long, which no manifest is.", hint=_ASK_PUBLISHER)
    try:
        check_schema(data, MANIFEST_SCHEMA, where)
        manifest = decode_json(data, Manifest)
    except msgspec.MsgspecError as error:
        sentence = f"{where} is not a valid manifest: {field_error(error)}."
        if _is_unsafe(error):
            raise UnsafeContentError(sentence, hint="Do not use this pack; tell its publisher.") from error
        raise IntegrityError(sentence, hint=_ASK_PUBLISHER) from error
    if manifest.to_bytes() != data:
        raise IntegrityError(
            f"{where} is not in canonical form, so its digest does not identify it.",
            hint="Build the pack again with `skillhub pack` instead of editing the manifest.",
        )
    return manifest


def _is_unsafe(error: BaseException | None) -> bool:
    """Say whether one of our own checks inside msgspec's decoding found content that could do harm."""
    while error is not None and not isinstance(error, UnsafeContentError):
        error = error.__cause__
    return error is not None
