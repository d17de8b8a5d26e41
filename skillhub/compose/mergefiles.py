"""Running a file of mergekit: its documents one after another, each a merge of whole models into a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from skillhub.compose.lineage import CARD_FILE
from skillhub.compose.mergecards import merge_card
from skillhub.compose.mergecompanions import write_companions
from skillhub.compose.modelmerges import MergedTensor, ModelMerge
from skillhub.compose.modelsources import ModelSource, open_sources
from skillhub.compose.packsources import EnvironmentSource
from skillhub.compose.recipes import ROUNDINGS
from skillhub.compose.sharding import (
    SHARD_BYTES,
    FusedTensor,
    Shard,
    own_shards,
    room_error,
    split_shards,
    write_index,
    write_shards,
)
from skillhub.compose.vocabularies import Vocabulary, make_vocabulary
from skillhub.devices import choose_device
from skillhub.errors import UsageError
from skillhub.files import new_folder
from skillhub.interop.mergekit.configurations import Configuration, read_configurations
from skillhub.interop.mergekit.models import ModelName
from skillhub.progress import Notice, Progress, silence
from skillhub.ranks import Ranks, joined_ranks, shared_stage


def fuse_file(
    path: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    rounding: str = "auto",
    device: str = "auto",
    environment: EnvironmentSource | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Path:
    """Run a merge configuration of mergekit: ``skillhub fuse config.yaml``.

    Every tensor is computed in fp32 from the stored tensors and rounded once; ``docs/merging.md`` says where that differs from what
    mergekit computes. Models are folders, repositories, installed packs or pack folders, which stand for their base with their
    delta. A file may have several documents: those with a name can be used as models by the others. The result of the one
    without a name is the checkpoint at ``out`` and those of the others are removed; where all have names, each is kept in a folder
    of its own below ``out``. Under ``torchrun`` the processes share the files of every result among themselves.

    Args:
        path: the file.
        out: the new checkpoint's folder; must not exist or be empty. It appears whole or not at all.
        seed: of random masks.
        rounding: ``auto`` (to nearest, but stochastic for tensors of lossy packs), ``nearest`` or ``stochastic``.
        device: where chunks are merged: ``auto``, ``cpu``, or the name of another.
        environment: where pack names are looked up; the per-user environments by default.
        shard_bytes: most bytes of one safetensors file, unless one tensor is larger.
        progress: called with (``tensors``, done, all), for one document after another.
        notice: told of models without a tokenizer.

    Returns:
        The folder.

    Raises:
        UsageError: ``out`` is not empty, something in the file is wrong or not supported (the error names its place), or the models
            do not go together.
        NotFoundError: the file or a model does not exist.
        WrongBaseError: a pack is not for its base.
        IntegrityError: a file of a model or pack is damaged.
        DiskError: the disk is full or the folder may not be written.
    """
    if rounding not in ROUNDINGS:
        raise UsageError(f"There is no rounding {rounding!r}.", hint=f"Use one of: {', '.join(ROUNDINGS)}.")
    folder = new_folder(out)
    documents = ordered(read_configurations(Path(path)))
    settings: dict[str, Any] = {
        "seed": seed,
        "rounding": rounding,
        "environment": environment,
        "device": choose_device(device),
    }
    with joined_ranks() as ranks, shared_stage(ranks, folder) as staged:
        results: dict[str, Path] = {}
        for one in documents:
            target = _target(one, documents, staged)
            failure: Exception | None = None
            try:
                merge = open_merge(one, results, notice=notice if ranks.leads else silence, **settings)
                _write_checkpoint(target, merge, documents, shard_bytes, progress, ranks)
            except Exception as error:  # told to the other processes first
                failure = error
            ranks.agree(failure)
            if one.name is not None:
                results[one.name] = target
    return folder


def _target(document: Configuration, documents: Sequence[Configuration], staged: Path) -> Path:
    """Return the folder for a document's result, which is made if it is not there."""
    if document.name is None or len(documents) == 1:
        return staged
    # Beside the staged folder, so that it goes away with it, whatever happens.
    final = any(one.name is None for one in documents)
    target = (staged.with_name("results") if final else staged) / document.name
    target.mkdir(parents=True, exist_ok=True)
    return target


def ordered(documents: Sequence[Configuration]) -> list[Configuration]:
    """Return documents so that each comes after those whose results it uses, else as they stand in the file.

    Raises:
        UsageError: two have one name, several have none, or they use each other in a circle.
    """
    by_name: dict[str | None, Configuration] = {}
    for one in documents:
        if one.name in by_name:
            what = "has no name either" if one.name is None else f"is called {one.name!r} too"
            raise one.place.error(f"another document {what}.", "Give every document but the last a name of its own.")
        by_name[one.name] = one
    done: list[Configuration] = []
    waiting = list(documents)
    while waiting:
        missing = {one.name for one in waiting}
        free = next((one for one in waiting if not missing & _uses(one)), None)
        if free is None:
            raise waiting[0].place.error("the documents use each other's results in a circle.", "Break the circle.")
        done.append(free)
        waiting.remove(free)
    return done


def waits_for(document: Configuration, documents: Sequence[Configuration]) -> bool:
    """Say whether a document uses the result of another."""
    return bool({one.name for one in documents} & _uses(document))


def _uses(document: Configuration) -> set[str | None]:
    """Return the names of all models of a document, the tokenizer's too."""
    choice = document.tokenizer
    source = [choice.source] if choice and isinstance(choice.source, ModelName) else []
    return {model.path for model in [*document.models, *source]}


def open_merge(
    document: Configuration,
    results: Mapping[str, Path],
    *,
    seed: int = 0,
    rounding: str = "auto",
    device: torch.device | None = None,
    environment: EnvironmentSource | None = None,
    notice: Notice | None = None,
) -> ModelMerge:
    """Open the models of a document, and make the vocabulary that it asks for.

    Raises:
        SkillhubError: as :func:`fuse_file`.
    """
    sources = open_sources(document.models, environment=environment, results=results)
    _check_architectures(list(sources.values()))
    vocabulary = _vocabulary(document, sources, results, environment, notice)
    return ModelMerge(document, sources, vocabulary, seed, rounding, device)


def _vocabulary(
    document: Configuration,
    sources: Mapping[ModelName, ModelSource],
    results: Mapping[str, Path],
    environment: EnvironmentSource | None,
    notice: Notice | None,
) -> Vocabulary | None:
    choice = document.tokenizer
    if choice is None:
        return None
    named = None
    if isinstance(choice.source, ModelName):
        (named,) = open_sources([choice.source], environment=environment, results=results).values()
    return make_vocabulary(choice, sources, next(iter(sources)), named, notice)


def _check_architectures(sources: Sequence[ModelSource]) -> None:
    first = sources[0]
    for source in sources[1:]:
        mine, other = first.checkpoint.architecture, source.checkpoint.architecture
        if mine and other and mine != other:
            raise source.model.place.error(
                f"{source.model} is a {other} and {first.model} a {mine}.", "Merge models of one architecture."
            )


def shards_of(tensors: Sequence[MergedTensor], shard_bytes: int) -> list[Shard]:
    """Return the files that tensors are written to."""
    return split_shards([FusedTensor(one.name, one.dtype, one.shape, one.planned.name) for one in tensors], shard_bytes)


def _write_checkpoint(
    folder: Path,
    merge: ModelMerge,
    documents: Sequence[Configuration],
    shard_bytes: int,
    progress: Progress | None,
    ranks: Ranks,
) -> None:
    tensors = merge.plan()
    by_name = {tensor.name: tensor for tensor in tensors}
    shards = shards_of(tensors, shard_bytes)
    if ranks.leads:
        if lack := room_error(shutil.disk_usage(folder).free, shards):
            raise lack
        write_companions(folder, merge, tensors)  # what may be wrong with them comes out before the hours of merging
        (folder / CARD_FILE).write_text(merge_card(merge, documents), encoding="utf-8")
        write_index(folder, shards)
    write_shards(
        folder,
        own_shards(ranks, shards),
        lambda tensor: merge.pieces(by_name[tensor.name]),
        progress=progress if ranks.leads else None,
    )
