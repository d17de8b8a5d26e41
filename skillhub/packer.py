"""Building a pack: the delta between a fine-tune and its base, encoded, with a routing card and a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, structs

from skillhub import __version__
from skillhub.authorfile import AuthorFile
from skillhub.basemodel import base_info
from skillhub.bases import LocatedBase, find_base
from skillhub.canonical import refuse_changed_layers
from skillhub.checkpoints import Checkpoint, open_checkpoint
from skillhub.deltaencoding import DeltaEncoder
from skillhub.deltas import Delta
from skillhub.documents import field_error
from skillhub.errors import UsageError
from skillhub.fields import Label
from skillhub.files import new_folder
from skillhub.fingerprint import BaseRecord, fingerprint_checkpoint
from skillhub.goals import FEWEST_PROMPTS, LOSSLESS, Goal, choose_goal, write_tensors
from skillhub.licenses import BASE_LICENSE, stated_license
from skillhub.manifest import BASE_RECORD_FILE, CodecInfo, Evaluation, Manifest, TensorEntry, Variant, variant_folder
from skillhub.packs import ROUTER_FILE, Pack, file_entry, open_pack, write_manifest
from skillhub.partials import Partial, digest_inputs, partial_pack
from skillhub.progress import Notice, Progress, silence
from skillhub.prompts import check_prompts
from skillhub.ranks import joined_ranks, shared_stage
from skillhub.relatedness import doubt, relative_norm
from skillhub.routingcards import RouterInfo

if TYPE_CHECKING:
    from skillhub.calibration import Calibration

MAX_README_BYTES = 8 << 20


def pack(
    tuned: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    metadata: AuthorFile,
    preset: str = "near",
    budget_bytes: int | None = None,
    max_kl: float | None = None,
    recipe_options: Mapping[str, object] | None = None,
    prompts: Sequence[str] | None = None,
    calibrate: bool = True,
    resume: bool = True,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Pack:
    """Build the pack of a fine-tune, with one variant for its base.

    What is found out is kept in ``.<name>.partial`` beside ``out`` until the pack is there, so that a run which was interrupted goes on
    where it was. Under ``torchrun`` the tensors are shared among the processes, on a file system that all of them share; the pack
    is, byte for byte, the one that a single process on such a machine makes.

    Args:
        tuned: the fine-tuned checkpoint: a folder with safetensors, or ``repo[@revision]``.
        base: the base model that it was fine-tuned from, likewise.
        out: folder of the new pack; it must not exist yet, or be empty.
        metadata: name, version and what else the author says.
        preset: ``near``, ``small`` or ``tiny``: how many bits a weight may cost; ``lossless``: every tensor bit for bit and in
            its own dtype, for whoever has the base's exact values (``fuse`` writes the base's dtypes, unless it is told another); or, to
            compare with, a published recipe (:mod:`skillhub.recipes`): ``graftllm``, ``delta-come``, ``bitdelta`` or ``svd-lora``, all
            of the model as its paper has it. What a recipe does not compress is kept exactly: norms and biases, with Delta-CoMe and
            BitDelta embeddings and head too, and whatever has tokens beyond the base's.
        budget_bytes: most payload, to within 2 %, instead of a preset's; nothing is written that is larger.
        max_kl: instead of a size, how far the pack's predictions may be from the fine-tune's: KL(fine-tune ‖ pack) in nats a predicted
            token, weights as they are stored, over the fine-tune's answers to every fourth prompt, which then does not calibrate. The
            smallest of about five packs that were tried is written, and the manifest has its divergence; rounding weights takes random
            bits from a pack's digest, so that measured again it may differ by some 3 %, which is kept clear of the bound.
        recipe_options: of a recipe, other options than its paper's, as for :func:`skillhub.recipes.choose_recipe`.
        prompts: what users of the pack might write: 32 to 128, worded in several ways, and up to 256 for a broad skill. They make its routing card, and the fine-tune reads
            them to tell which errors matter (:mod:`skillhub.calibration`; a minute on a core for 135M parameters). Without them the
            prompts of ``metadata.skills`` are taken, where there are enough; else the pack has no card and all weights count alike.
        calibrate: whether prompts are also read by the fine-tune; otherwise all weights count alike, and they make the routing card only.
        resume: whether to go on with an earlier run that was interrupted, from the same inputs; the pack is the same either way.
        progress: called with (what, tensors or prompts done, all of them).
        notice: told what the routing card is worth, or why there is none, and what was taken up from an earlier run.

    Returns:
        The pack, opened.

    Raises:
        UsageError: metadata, preset or a prompt is not valid, ``out`` has something in it, the checkpoints are the same, what must
            be stored exactly is larger than the budget, no routing card can be made from ``prompts``; or ``max_kl`` is given without 16
            prompts, of an encoder, or is less than any pack reaches (the error says what is reached).
        WrongBaseError: a tensor of the fine-tune does not have its base's shape.
        NotFoundError, UnsafeContentError, IntegrityError: a checkpoint cannot be read.
        DiskError: the disk is full or ``out`` may not be written.
    """
    check_prompts(prompts, metadata.skills.prompts)
    manifest, out = metadata.to_manifest(), new_folder(out)
    goal = choose_goal(preset, budget_bytes, recipe_options, max_kl)
    asked = prompts or metadata.skills.prompts
    to_read, held_out = goal.split(asked)
    found = find_base(base)
    delta = Delta(open_checkpoint(found.folder), open_checkpoint(tuned))
    changed = _changed_names(delta, to_the_bit=goal.preset == LOSSLESS)
    if held_out:
        _check_generates(found.folder)
    draft = _Draft(goal, structs.replace(manifest, provenance=goal.facts), found, fingerprint_checkpoint(found.folder))
    examples = to_read if calibrate and goal.is_calibrated and len(asked) >= FEWEST_PROMPTS else ()
    tell = notice or silence
    if doubts := doubt(relative_norm(delta, changed), base):
        tell(doubts)

    def inputs() -> str:
        return digest_inputs(delta, preset, budget_bytes, dict(recipe_options or {}), list(examples))

    with (
        joined_ranks() as ranks,
        partial_pack(ranks, out, inputs, resume=resume, notice=tell) as partial,
        shared_stage(ranks, out) as staged,
    ):
        folder = draft.folder(staged)

        def prepare() -> tuple[RouterInfo | None, Calibration | None]:
            _tell_what_is_known(partial, len(changed), tell)
            folder.mkdir(parents=True)
            router = write_card(found.folder, folder, prompts, metadata.skills.prompts, progress, notice)
            return router, _calibrate(delta, examples, partial, progress, tell, needed=bool(prompts))

        router, calibration = ranks.share(lambda: prepare() if ranks.leads else (None, None))[0]
        encoder = DeltaEncoder(delta, changed, partial, calibration, progress, ranks, tell)
        measured: list[Evaluation] = []
        if goal.max_kl is None:
            tensors = write_tensors(goal, encoder, folder)
        else:
            tensors, measured = _write_near(draft, encoder, folder, goal.max_kl, held_out, tell)
        if ranks.leads:
            draft.finish(staged, encoder, tensors, router, measured)
    return open_pack(out)


@dataclass(frozen=True, eq=False)
class _Draft:
    """What is known of a pack before its tensors are encoded."""

    goal: Goal
    manifest: Manifest
    found: LocatedBase
    record: BaseRecord

    def folder(self, place: Path) -> Path:
        """Return the variant's folder in a pack's."""
        return place / variant_folder(self.record.fingerprint)

    def finish(
        self,
        place: Path,
        encoder: DeltaEncoder,
        tensors: dict[str, TensorEntry],
        router: RouterInfo | None = None,
        measured: Sequence[Evaluation] = (),
    ) -> None:
        """Make a pack of a folder that has the delta files."""
        codec = CodecInfo(
            preset=self.goal.preset,
            bits_per_weight=bits_per_weight(tensors, encoder.delta.base),
            tensors=tensors,
            calibrated=encoder.calibration is not None if self.goal.is_calibrated else UNSET,
        )
        folder = self.folder(place)
        finish_pack(place, folder, self.manifest, self.found, self.record, codec, router, measured)


def _check_generates(base: Path) -> None:
    from skillhub.nearness import check_generates

    check_generates(base)


def _write_near(
    draft: _Draft, encoder: DeltaEncoder, folder: Path, bound: float, prompts: Sequence[str], tell: Notice
) -> tuple[dict[str, TensorEntry], list[Evaluation]]:
    """Write the smallest delta files found within a divergence; return what the manifest says of the tensors, and of the divergence."""
    from skillhub.nearness import Gauge, open_gauge, write_near

    def gauge(spool: Path) -> Gauge:
        return open_gauge(encoder.delta.tuned.folder, encoder.delta.base.folder, prompts, spool)

    def make_pack(place: Path, tensors: dict[str, TensorEntry]) -> Pack:
        draft.finish(place, encoder, tensors)
        return open_pack(place)

    tensors, evaluation = write_near(encoder, folder, bound, gauge, make_pack, tell)
    return tensors, [evaluation]


def _tell_what_is_known(partial: Partial, tensors: int, tell: Notice) -> None:
    """Say what was taken up from an earlier run."""
    found = {what: partial.count(kind) for what, kind in (("analysed", "analysis"), ("encoded", "encoding"))}
    known = [f"{count} of {tensors} tensors {what}" for what, count in found.items() if count]
    if partial.count("calibration"):
        known = ["calibrated", *known]
    if known:
        tell(f"Going on with an interrupted run ({', '.join(known)}). To start anew, remove {partial.folder.parent}.")


def _changed_names(delta: Delta, *, to_the_bit: bool) -> list[str]:
    """Return the names of the tensors that differ, after a look at whether the two belong together at all."""
    shared = set(delta.base.tensors) & set(delta.tuned.tensors)
    if not shared:
        raise UsageError(
            f"{delta.tuned.folder} and {delta.base.folder} have no tensor in common.",
            hint="Give the base model that the fine-tune started from.",
        )
    changed = [name for name in delta.names if not delta.is_unchanged(name, to_the_bit=to_the_bit)]
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


def _calibrate(
    delta: Delta,
    prompts: Sequence[str],
    partial: Partial,
    progress: Progress | None,
    tell: Notice,
    *,
    needed: bool,
) -> Calibration | None:
    """Read the prompts with the fine-tune; those that are examples for people alone need not be enough, nor fit a model."""
    if not prompts:
        return None
    from skillhub.calibration import calibrate

    def read() -> tuple[Calibration | None]:
        try:
            return (calibrate(delta.tuned.folder, delta.base.folder, prompts, partial.folder, progress=progress),)
        except UsageError as error:
            if needed:
                raise
            tell(f"Packed without calibration. {error.message}")
            return (None,)

    return partial.made("calibration", "", read)[0]


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
    evaluation: Sequence[Evaluation] = (),
) -> None:
    """Write the base's record and, last, the manifest."""
    (folder / BASE_RECORD_FILE).write_bytes(record.to_bytes())
    paths = sorted(path.relative_to(staged).as_posix() for path in folder.iterdir())
    base = base_info(found.folder, record, repository=found.repo, revision=found.revision)
    files = [file_entry(staged, path) for path in paths]
    variant = Variant(base=base, codec=codec, files=files, evaluation=list(evaluation), router=router)
    provenance = {**manifest.provenance, "built_with": f"skillhub {__version__}", **_base_license(found.folder)}
    write_manifest(staged, structs.replace(manifest, variants=[variant], provenance=provenance))


def _base_license(folder: Path) -> dict[str, str]:
    """Return what the base's own README says of its licence; publishing compares the pack's with it."""
    readme = (folder.parent if folder.is_file() else folder) / "README.md"
    try:
        found = stated_license(readme.read_bytes()[:MAX_README_BYTES])
    except (OSError, UsageError):  # it says nothing that can be read
        found = None
    return {BASE_LICENSE: found} if found else {}
