"""Exporting packs for other tools: adapters of peft, and a script that serves them with vLLM."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from skillhub.adapters import FILES, Adapter
from skillhub.bases import LocatedBase, find_base
from skillhub.checkpoints import Checkpoint, open_checkpoint
from skillhub.compose.compatibility import check_packs, common_fingerprints, open_contributions
from skillhub.compose.declarations import tell_declared_bases
from skillhub.compose.merging import Contribution
from skillhub.compose.packsources import EnvironmentSource, PackSource
from skillhub.compose.recipes import Recipe, make_recipe
from skillhub.compose.schedules import Amount
from skillhub.compose.tunedcheckpoints import CheckpointBase
from skillhub.compose.verification import base_records, wrong_base
from skillhub.errors import UsageError
from skillhub.files import new_folder, staged_folder
from skillhub.fingerprint import fingerprint_checkpoint
from skillhub.interop.adapterdeltas import AdapterDelta, Target
from skillhub.interop.exportcards import README_FILE, ExportedAdapter, counted, readme
from skillhub.interop.exports import ROUNDING, Measured, adapter_config, write_pack, write_scaled
from skillhub.interop.fits import Fit, Fitting, Reader, Reason, fit_adapter, fit_pack, needs_patterns
from skillhub.interop.launching import MAX_RANK, SCRIPT_FILE, launch_script
from skillhub.interop.modules import Modules, empty_model, modules_of
from skillhub.packdeltas import PackDelta
from skillhub.progress import Notice, Progress

FORMATS = {"peft": Reader(), "vllm": Reader(linear_only=True, highest_rank=MAX_RANK)}
_TAKEN = {README_FILE, SCRIPT_FILE}


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: the folder.
        adapters: in it, by name.
        script: what serves them, where that was asked for.
    """

    folder: Path
    adapters: tuple[ExportedAdapter, ...]
    script: Path | None


@dataclass(frozen=True)
class _Base:
    located: LocatedBase
    fingerprint: str
    checkpoint: Checkpoint
    model: nn.Module
    modules: Modules


def export_adapters(
    packs: Sequence[PackSource],
    base: str | Path,
    out: str | Path,
    *,
    format: str = "peft",
    weights: Sequence[Amount] | None = None,
    rank: int | None = None,
    max_error: float | None = None,
    partial: bool = False,
    environment: EnvironmentSource | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Export:
    """Write packs as adapters of peft, one folder each: what routing or a server of several LoRAs chooses between.

    The low-rank components that a pack stores become factors in fp32 whose product is the pack's delta up to fp32's rounding. An
    adapter can say no more than that of linear layers and embeddings, and hold norms as a whole; vLLM takes linear layers only. What
    does not fit (biases, fused experts, added rows and tensors, what a pack stores densely; for vLLM embeddings, heads and norms) is
    listed in the result and in a README.md. Adapters of peft are passed on as they are; for vLLM, which reads neither
    ``rank_pattern`` nor ``alpha_pattern``, their scales are multiplied into the factors where they differ.

    Args:
        packs: installed names, folders or opened packs, and adapters of peft; all for the same base.
        base: a checkpoint folder or ``repo[@revision]``.
        out: the new folder; must not exist or be empty. It appears whole or not at all.
        format: ``peft``, or ``vllm`` for a launch script as well.
        weights: one per pack, multiplied into its factors; 1 by default, and for adapters always.
        rank: highest rank; what is stored densely, or with a higher one, becomes the nearest product of this rank.
        max_error: most that an adapter may not say of its pack, by lack of rank and in what is left out of it: a share of the sum of
            squares of the pack's whole delta (the square of the relative error in the Frobenius norm). None is any.
        partial: leave out what does not fit, instead of refusing.
        environment: where pack names are looked up; the per-user environments by default.
        progress: called with (``adapters``, done, all).
        notice: told what could not be verified; by default that is logged.

    Returns:
        What was written and what was left out.

    Raises:
        UsageError: something does not fit and ``partial`` is not set, nothing fits, an adapter would lack more than ``max_error``, or
            the arguments do not go together.
        WrongBaseError: the packs were made for another base.
        NotFoundError: the base or a pack does not exist.
        IntegrityError: a file of the base or of a pack is damaged.
        DiskError: the disk is full or the folder may not be written.
    """
    folder = new_folder(out)
    _check_options(format, rank, max_error)
    found = _open_base(base)
    recipe = make_recipe(packs, weights=weights, environment=environment, fingerprint=lambda: found.fingerprint)
    contributions = _contributions(recipe, found)
    fits = [_fit(one, found, rank, format) for one in contributions]
    for one, fit in zip(contributions, fits, strict=True):
        if not _is_passed_on(one, fit, format):
            _check_fit(one, fit, partial=partial, rank=rank)
    tell_declared_bases(recipe, found.located.repo, notice)
    written = []
    with staged_folder(folder, is_new=True) as staged:
        for name, one, fit in sorted(zip(_names(recipe), contributions, fits, strict=True), key=lambda item: item[0]):
            written.append(_write(staged / name, one, fit, found, format))
            if max_error is not None:
                _check_error(written[-1], max_error)
            if progress:
                progress("adapters", len(written), len(fits))
        if format == "vllm":
            script = staged / SCRIPT_FILE
            script.write_text(
                launch_script(
                    found.located.repo or str(found.checkpoint.folder.resolve()),
                    {one.name: one.rank for one in written},
                ),
                encoding="utf-8",
            )
            script.chmod(0o755)
        text = readme(type(found.model).__name__, found.fingerprint, written, is_served=format == "vllm")
        (staged / README_FILE).write_text(text, encoding="utf-8")
    return Export(folder, tuple(written), folder / SCRIPT_FILE if format == "vllm" else None)


def _check_options(format: str, rank: int | None, max_error: float | None) -> None:
    if max_error is not None and not 0 <= max_error <= 1:
        raise UsageError(f"max_error is {max_error}, and is a share.", hint="Use a number from 0 to 1, such as 0.05.")
    if format not in FORMATS:
        raise UsageError(f"There is no format {format!r}.", hint=f"Use one of: {', '.join(FORMATS)}.")
    highest = FORMATS[format].highest_rank or 1 << 16
    if rank is not None and not 1 <= rank <= highest:
        raise UsageError(f"The rank {rank} is not one that can be served.", hint=f"Use 1 to {highest}.")


def _open_base(base: str | Path) -> _Base:
    located = find_base(base)
    checkpoint = open_checkpoint(located.folder)
    model = empty_model(checkpoint.folder)
    fingerprint = fingerprint_checkpoint(checkpoint.files).fingerprint
    return _Base(located, fingerprint, checkpoint, model, modules_of(model))


def _contributions(recipe: Recipe, base: _Base) -> list[Contribution]:
    """Open every pack's delta for the base, and check that it fits it."""
    fingerprints = common_fingerprints(recipe)
    if recipe.skill_packs and base.fingerprint not in fingerprints:
        raise wrong_base(recipe, base_records(recipe, fingerprints), fingerprint_checkpoint(base.checkpoint.files))
    checkpoint = base.checkpoint
    target = Target(base.modules, checkpoint.tensor, checkpoint.aliases)
    contributions = open_contributions(
        recipe, base.fingerprint, checkpoint.tensors, lambda: target, CheckpointBase(checkpoint)
    )
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    for one in contributions:
        check_packs([one], shapes, in_memory=False)
        if isinstance(one.item.pack, Adapter) and one.item.weight != 1:
            raise UsageError(
                f"{one.item.pack} is an adapter, which is passed on as it is.", hint="Leave its weight out."
            )
    return contributions


def _fit(one: Contribution, base: _Base, rank: int | None, format: str) -> Fit:
    if isinstance(one.delta, PackDelta):
        fitting = Fitting(base.model, base.modules, base.checkpoint.aliases, FORMATS[format], rank)
        return fit_pack(one.delta, fitting)
    assert isinstance(one.delta, AdapterDelta)  # whole checkpoints were refused when the deltas were opened
    return fit_adapter(one.delta.pack, FORMATS[format])


def _is_passed_on(one: Contribution, fit: Fit, format: str) -> bool:
    """Say whether a pack is an adapter whose files are copied: peft can do all that they hold, vLLM what is scaled alike."""
    if not isinstance(one.delta, AdapterDelta):
        return False
    return format == "peft" or not (fit.misfits or needs_patterns(one.delta.pack))


def _check_fit(one: Contribution, fit: Fit, *, partial: bool, rank: int | None) -> None:
    """Refuse what nothing would be left of, and what would lose something unless that was asked for."""
    if fit.layers and (partial or not fit.misfits):
        return
    is_dense = any(misfit.reason == Reason.DENSE for misfit in fit.misfits)
    approximate = " Approximate what is stored densely with --rank 64 (rank=64)." if is_dense and rank is None else ""
    listed = [{"tensor": misfit.tensor, "reason": misfit.reason.value} for misfit in fit.misfits]
    what = counted(fit.misfits)
    if not fit.layers:
        raise UsageError(
            f"Nothing that {one.delta.pack} changes fits a LoRA adapter: {what or 'it takes one matrix of low rank at least'}.",
            hint=f"Fuse it into a checkpoint instead: skillhub fuse.{approximate}",
            misfits=listed,
        )
    raise UsageError(
        f"{one.delta.pack} changes {len(listed)} tensors that do not fit a LoRA adapter: {what}.",
        hint=f"Leave them out with --partial (partial=True), or fuse the pack: skillhub fuse.{approximate}",
        misfits=listed,
    )


def _check_error(adapter: ExportedAdapter, most: float) -> None:
    """Refuse an adapter that lacks more of its pack than is allowed, or nobody knows how much."""
    measured = adapter.measured
    if measured is None:
        if adapter.misfits:
            raise UsageError(
                f"How much {adapter.pack} would lack is not measured: it is an adapter, with {counted(adapter.misfits)} to leave out.",
                hint="Leave out --max-error (max_error), or export it --to peft, which passes it on whole.",
            )
        return
    if measured.total <= max(most, ROUNDING):
        return
    parts = [f"{measured.error:.1%} by its rank of {adapter.rank}"] if measured.error > ROUNDING else []
    parts += [f"{measured.left_out:.1%} in {counted(adapter.misfits)}"] if measured.left_out else []
    worst = f" Of {measured.worst} alone it lacks {measured.worst_error:.1%}." if measured.worst else ""
    higher = f"a rank above {adapter.rank} (--rank), " if measured.error > ROUNDING else ""
    raise UsageError(
        f"The adapter of {adapter.pack} would lack {measured.total:.1%} of the sum of squares of its delta ({', '.join(parts)}), more "
        f"than the {most:.1%} that are allowed.{worst}",
        hint=f"Allow {higher}more with --max-error (max_error), or fuse the pack: skillhub fuse.",
        error=measured.error,
        left_out=measured.left_out,
        worst=measured.worst,
    )


def _names(recipe: Recipe) -> list[str]:
    """Return a folder's name for each pack; packs of one name are told apart by their digests."""
    plain = [re.sub(r"[^\w.-]", "-", item.pack.name.name, flags=re.ASCII).lstrip(".-") for item in recipe.packs]
    counts = Counter(name.lower() for name in plain)
    return [
        name
        if name and counts[name.lower()] == 1 and name not in _TAKEN
        else f"{name}-{item.pack.digest[:8]}".lstrip("-")
        for name, item in zip(plain, recipe.packs, strict=True)
    ]


def _write(folder: Path, one: Contribution, fit: Fit, base: _Base, format: str) -> ExportedAdapter:
    """Write one adapter's folder."""
    folder.mkdir()
    measured = _write_files(folder, one, fit, base, format)
    return ExportedAdapter(
        name=folder.name,
        pack=str(one.delta.pack),
        digest=one.delta.pack.digest,
        layers=len(fit.layers),
        norms=len(fit.wholes),
        rank=fit.rank,
        size=sum((folder / file).stat().st_size for file in FILES),
        misfits=fit.misfits,
        measured=measured,
        is_shared=fit.is_shared,
    )


def _write_files(folder: Path, one: Contribution, fit: Fit, base: _Base, format: str) -> Measured | None:
    located = base.located
    if isinstance(one.delta, PackDelta):
        info = one.delta.variant.base  # says where the base is from, where it was not fetched
        repository, revision = (located.repo, located.revision) if located.repo else (info.repo, info.revision)
        return write_pack(
            folder,
            one.delta,
            fit,
            adapter_config(fit, base.model, base=repository, revision=revision),
            weight=lambda name: one.item.weight_at(name, one.layers),
            read_base=base.checkpoint.tensor,
        )
    assert isinstance(one.delta, AdapterDelta)
    adapter = one.delta.pack
    if _is_passed_on(one, fit, format):
        for file in FILES:
            shutil.copyfile(adapter.folder / file, folder / file)
    else:
        config = adapter_config(fit, base.model, base=located.repo, revision=located.revision)
        write_scaled(folder, adapter, fit, config)
    return None
