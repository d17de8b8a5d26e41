"""Building a pack: the delta between a fine-tune and its base, encoded tensor by tensor under one budget.

Two passes: the first measures what every tensor's bits would buy, then one Lagrange multiplier is chosen for the whole
model, then the second pass encodes. So a byte goes where it removes most of the error, whichever tensor that is in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import structs

from skillhub import __version__
from skillhub.authorfile import AuthorFile
from skillhub.basemodel import base_info
from skillhub.bases import LocatedBase, find_base
from skillhub.canonical import refuse_changed_layers
from skillhub.checkpoints import Checkpoint, open_checkpoint
from skillhub.codecs import EncodedTensor, decode, decoded_digest, exact
from skillhub.codecs.allocation import Analysis, ErrorRecord, analyse, choose_lambda, encode, measure_error
from skillhub.deltafiles import DeltaWriter
from skillhub.deltas import Delta
from skillhub.documents import field_error
from skillhub.errors import UsageError
from skillhub.fields import Label
from skillhub.files import new_folder, staged_folder
from skillhub.fingerprint import BaseRecord, fingerprint_checkpoint
from skillhub.licenses import BASE_LICENSE, stated_license
from skillhub.manifest import BASE_RECORD_FILE, CodecInfo, Manifest, TensorEntry, Variant, variant_folder
from skillhub.packs import ROUTER_FILE, Pack, file_entry, open_pack, write_manifest
from skillhub.progress import Notice, Progress, silence
from skillhub.routingcards import RouterInfo

PRESETS = {"near": 45, "small": 75, "tiny": 170}
"""Preset → how many times smaller than the base's stored weights the payload is to be."""

BUDGET_TOLERANCE = 0.02
"""How much over its budget a payload may be."""

BUDGET_ATTEMPTS = 8

MAX_README_BYTES = 8 << 20


def pack(
    tuned: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    metadata: AuthorFile,
    preset: str = "near",
    budget_bytes: int | None = None,
    prompts: Sequence[str] | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Pack:
    """Build the pack of a fine-tune, with one variant for its base.

    Args:
        tuned: the fine-tuned checkpoint: a folder with safetensors, or ``repo[@revision]``.
        base: the base model that it was fine-tuned from, likewise.
        out: folder of the new pack; it must not exist yet, or be empty.
        metadata: name, version and what else the author says.
        preset: ``near``, ``small`` or ``tiny``: how many bits a weight may cost.
        budget_bytes: most payload, to within 2 %, instead of a preset's; nothing is written that is larger.
        prompts: what users of the pack might write, for its routing card: 32 to 128, worded in several ways. Without them the
            prompts of ``metadata.skills`` are taken, where there are enough; else the pack has no card.
        progress: called with (what, tensors or prompts done, all of them).
        notice: told what the routing card is worth, or why there is none.

    Returns:
        The pack, opened.

    Raises:
        UsageError: metadata or preset is not valid, ``out`` has something in it, the checkpoints are the same, what must
            be stored exactly is larger than the budget, or no routing card can be made from ``prompts``.
        WrongBaseError: a tensor of the fine-tune does not have its base's shape.
        NotFoundError, UnsafeContentError, IntegrityError: a checkpoint cannot be read.
        DiskError: the disk is full or ``out`` may not be written.
    """
    manifest, out = metadata.to_manifest(), new_folder(out)
    if preset not in PRESETS:
        raise UsageError(f"There is no preset {preset!r}.", hint=f"Choose one of {', '.join(PRESETS)}.")
    found = find_base(base)
    delta = Delta(open_checkpoint(found.folder), open_checkpoint(tuned))
    changed = _changed_names(delta)
    record = fingerprint_checkpoint(found.folder)
    with staged_folder(out, is_new=True) as staged:
        folder = staged / variant_folder(record.fingerprint)
        folder.mkdir(parents=True)
        router = write_card(found.folder, folder, prompts, metadata.skills.prompts, progress, notice)
        tensors = _write_delta(delta, changed, folder, preset, budget_bytes, progress)
        codec = CodecInfo(
            preset="budget" if budget_bytes else preset,
            bits_per_weight=bits_per_weight(tensors, delta.base),
            tensors=tensors,
        )
        finish_pack(staged, folder, manifest, found, record, codec, router)
    return open_pack(out)


def _changed_names(delta: Delta) -> list[str]:
    """Return the names of the tensors that differ, after a look at whether the two belong together at all."""
    shared = set(delta.base.tensors) & set(delta.tuned.tensors)
    if not shared:
        raise UsageError(
            f"{delta.tuned.folder} and {delta.base.folder} have no tensor in common.",
            hint="Give the base model that the fine-tune started from.",
        )
    changed = [name for name in delta.names if not delta.is_unchanged(name)]
    if not changed:
        raise UsageError(
            f"{delta.tuned.folder} has the same weights as {delta.base.folder}.",
            hint="Give the fine-tuned checkpoint first and its base with --base.",
        )
    _check_names(delta, changed)
    return changed


def _check_names(delta: Delta, names: list[str]) -> None:
    """Refuse what the base's config has no place for, and names that no manifest can hold."""
    for verb, change in (("adds", "added"), ("lacks", "removed")):
        found = [name for name in names if delta.change(name) == change]
        refuse_changed_layers(str(delta.tuned.folder), found, verb=verb)
    for name in names:
        try:
            msgspec.convert(name, Label)
        except msgspec.ValidationError as error:
            raise UsageError(
                f"A pack cannot hold the tensor name {name[:100]!r}: {field_error(error).removeprefix('$: ')}.",
                hint="Rename the tensor in the checkpoint.",
            ) from error


def _write_delta(
    delta: Delta, names: list[str], folder: Path, preset: str, budget_bytes: int | None, progress: Progress | None
) -> dict[str, TensorEntry]:
    """Encode every changed tensor into the variant's files; return what the manifest says of each.

    The analysis estimates what a price costs. Where the bytes turn out to be more than the budget, all is encoded again at
    a higher price.
    """
    with tempfile.TemporaryDirectory(dir=folder) as spool:
        analyses, set_bytes = _analyse(delta, names, Path(spool), progress)
        exact_bytes = set_bytes + sum(analysis.fixed_bytes for analysis in analyses.values())
        # A preset never fails: where what must be stored exactly takes more than its share (small models), that alone is stored.
        budget = budget_bytes or max(_stored_bytes(delta.base) // PRESETS[preset], exact_bytes)
        price = choose_lambda(list(analyses.values()), budget, set_bytes=set_bytes)
        for attempt in range(BUDGET_ATTEMPTS):
            writer = DeltaWriter(folder)
            entries = _encode_all(delta, names, analyses, price, writer, progress)
            payload = sum(entry.bytes for entry in entries.values())
            if payload <= budget * (1 + BUDGET_TOLERANCE):
                return entries
            for path in writer.files:
                path.unlink()
            price *= 1.1 * 2.0**attempt * (payload - exact_bytes) / max(budget - exact_bytes, 1)
    raise UsageError(
        f"The pack does not fit {budget} bytes: its smallest form that was found takes {payload}.",
        hint=f"Choose a budget of at least {payload} bytes.",
        minimum=payload,
    )


def _encode_all(
    delta: Delta,
    names: list[str],
    analyses: dict[str, Analysis],
    price: float,
    writer: DeltaWriter,
    progress: Progress | None,
) -> dict[str, TensorEntry]:
    entries = {}
    for number, name in enumerate(names):
        if delta.change(name) == "removed":
            entries[name] = _removed(delta, name)
        else:
            entries[name] = _write_tensor(delta, name, analyses.get(name), price, writer)
        _report(progress, "Encoding", number + 1, len(names))
    writer.close()
    return entries


def _analyse(delta: Delta, names: list[str], spool: Path, progress: Progress | None) -> tuple[dict[str, Analysis], int]:
    """Return what the bits of each difference would buy, and the bytes of the tensors that are stored as they are."""
    analyses, set_bytes = {}, 0
    for number, name in enumerate(names):
        if delta.is_additive(name):
            analyses[name] = analyse(name, delta.tensor(name), added_rows=delta.added_rows(name), spool=spool)
        elif delta.change(name) != "removed":
            set_bytes += _set_values(delta, name).nbytes
        _report(progress, "Analysing", number + 1, len(names))
    return analyses, set_bytes


def _write_tensor(delta: Delta, name: str, analysis: Analysis | None, price: float, writer: DeltaWriter) -> TensorEntry:
    """Encode and write one tensor; its errors are those of the decoded bytes, not of the plan."""
    if analysis is None:
        encoded, error = _set_values(delta, name), ErrorRecord(0.0, 0.0)
        decoded = decode(encoded)
    else:
        true = delta.tensor(name)
        encoded = encode(analysis, price, true)
        decoded = decode(encoded)
        error = measure_error(true, decoded)
    writer.add(name, encoded)
    return TensorEntry(
        shape=list(encoded.shape),
        change=delta.change(name),
        codecs=[part.codec for part in encoded.parts],
        bytes=encoded.nbytes,
        relative_error=error.relative_squared_error,
        max_error=error.max_absolute_error,
        digest=decoded_digest(decoded),
    )


def _set_values(delta: Delta, name: str) -> EncodedTensor:
    return exact.encode(delta.values(name), operation="set")


def _removed(delta: Delta, name: str) -> TensorEntry:
    shape = list(delta.base.tensors[name].shape)
    return TensorEntry(shape=shape, change="removed", codecs=[], bytes=0, relative_error=0.0, max_error=0.0)


def _stored_bytes(base: Checkpoint) -> int:
    return sum(info.nbytes for info in base.tensors.values())


def bits_per_weight(tensors: dict[str, TensorEntry], base: Checkpoint) -> float:
    """Return the payload's bits over the base's parameters."""
    payload = sum(entry.bytes for entry in tensors.values())
    return 8 * payload / max(base.parameters, 1)


def write_card(
    base: Path,
    folder: Path,
    prompts: Sequence[str] | None,
    examples: Sequence[str],
    progress: Progress | None,
    notice: Notice | None,
) -> RouterInfo | None:
    """Write the routing card, and return what the manifest says of it; examples for people alone need not be enough for one."""
    tell = notice or silence
    if not (prompts or examples):
        return None
    from skillhub.routing.basecards import write_base_card

    name = f"{folder.parent.name}/{folder.name}/{ROUTER_FILE}"
    try:
        router, report = write_base_card(base, prompts or examples, folder / ROUTER_FILE, name=name, progress=progress)
    except UsageError as error:
        if prompts:
            raise
        tell(f"No routing card was made. {error.message}")
        return None
    tell(
        f"Routing card: {report.own:.0%} of its {report.prompts} prompts would be routed to the pack without those like them, and "
        f"{report.background:.1%} of unrelated prompts."
    )
    return router


def finish_pack(
    staged: Path,
    folder: Path,
    manifest: Manifest,
    found: LocatedBase,
    record: BaseRecord,
    codec: CodecInfo,
    router: RouterInfo | None,
) -> None:
    """Write the base's record and, last, the manifest."""
    (folder / BASE_RECORD_FILE).write_bytes(record.to_bytes())
    paths = sorted(path.relative_to(staged).as_posix() for path in folder.iterdir())
    base = base_info(found.folder, record, repository=found.repo, revision=found.revision)
    variant = Variant(base=base, codec=codec, files=[file_entry(staged, path) for path in paths], router=router)
    provenance = {"built_with": f"skillhub {__version__}"} | _base_license(found.folder)
    write_manifest(staged, structs.replace(manifest, variants=[variant], provenance=provenance))


def _base_license(folder: Path) -> dict[str, str]:
    """Return what the base's own README says of its licence; publishing compares the pack's with it."""
    readme = (folder.parent if folder.is_file() else folder) / "README.md"
    try:
        found = stated_license(readme.read_bytes()[:MAX_README_BYTES])
    except (OSError, UsageError):  # it says nothing that can be read
        found = None
    return {BASE_LICENSE: found} if found else {}


def _report(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress:
        progress(what, done, total)
