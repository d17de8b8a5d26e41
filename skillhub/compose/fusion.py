"""Fusing: a base checkpoint and packs, adapters and fine-tuned checkpoints in, a plain checkpoint out, a chunk at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from skillhub.basemodel import CONFIG_FILE
from skillhub.compose.companions import adapt_config, choose_tokenizer, copy_companions
from skillhub.compose.declarations import tell_declared_bases
from skillhub.compose.lineage import CARD_FILE, model_card
from skillhub.compose.packsources import EnvironmentSource, PackSource
from skillhub.compose.plans import FusionPlan, plan_fusion
from skillhub.compose.schedules import Amount
from skillhub.compose.sharding import SHARD_BYTES, fused_pieces, own_shards, write_index, write_shards
from skillhub.devices import choose_device
from skillhub.errors import UsageError
from skillhub.files import new_folder
from skillhub.progress import Notice, Progress, silence
from skillhub.ranks import joined_ranks, shared_stage

VERIFICATIONS = ("files", "full")
"""``files`` compares the packs' files with their digests, once a process; ``full`` also every decoded tensor with its own."""


def fuse(
    base: str | Path,
    packs: Sequence[PackSource],
    out: str | Path,
    *,
    method: str = "linear",
    weights: Sequence[Amount] | None = None,
    densities: Sequence[Amount] | None = None,
    options: Mapping[str, Amount] | None = None,
    seed: int = 0,
    rounding: str = "auto",
    dtype: str | None = None,
    tokenizer: str | Path = "auto",
    verify: str = "files",
    device: str = "auto",
    environment: EnvironmentSource | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Path:
    """Write a checkpoint of a base model with packs fused into its weights.

    Each tensor is base + merged delta, summed in fp32 and rounded once into the base's dtype: the very bits that ``graft`` of the
    same packs puts into memory. Tensors are read, merged and written a chunk at a time, so the model may be far larger than memory.
    Tensor names, tied heads and untouched bytes stay as the base stores them; added tensors and rows are written, removed ones left
    out, and config.json follows (``vocab_size``, ``tie_word_embeddings``, ``dtype``). Config, tokenizer and generation files are copied
    from the base, and a model card says what the checkpoint was made of. Everything that :func:`skillhub.compose.plans.plan_fusion`
    finds wrong is refused before a weight is read.

    Under ``torchrun`` every process writes some of the files, into one folder on a file system that all of them share; the bytes are
    those that one process writes. Give ``shard_bytes`` that make at least as many files as there are processes.

    Args:
        base: a checkpoint folder or ``repo[@revision]``.
        packs: installed names, folders or opened packs, adapters of peft, and fine-tuned checkpoints (a folder, or
            ``checkpoint:repo[@revision]``), whose delta is their difference to the base; their order does not matter.
        out: the new checkpoint's folder; must not exist or be empty. It appears whole or not at all.
        method: a name in ``skillhub.compose.methods``, such as ``linear`` or ``ties``.
        weights: one per pack, in the order of ``packs``: a number, a list of numbers over the layers, or patterns of names with
            either; 1 by default.
        densities: one per pack, likewise; 1 by default.
        options: what else the method is told, by name; ``skillhub.compose.methods`` has them.
        seed: of the random masks of methods that drop elements at random.
        rounding: ``auto`` (to nearest where the packs hold a tensor exactly, else stochastic), ``nearest`` or ``stochastic``.
        dtype: ``bfloat16``, ``float16`` or ``float32``: of all floating-point tensors; by default each keeps the base's.
        tokenizer: whose tokenizer and chat template the checkpoint gets: ``base``; a checkpoint's; ``auto``: the base's, or that of
            the fine-tuned checkpoint that resizes the vocabulary.
        verify: one of :data:`VERIFICATIONS`.
        device: where chunks are merged: ``auto`` (CUDA where there is one with 2 GB left), ``cpu``, ``cuda``.
        environment: where pack names are looked up; the per-user environments by default.
        shard_bytes: most bytes of one safetensors file, unless one tensor is larger.
        progress: called with (``tensors``, done, all); under ``torchrun`` in the first process, of its own share.
        notice: told what could not be verified; by default that is logged.

    Returns:
        The folder.

    Raises:
        UsageError: ``out`` is not empty, or packs, weights or methods do not go together.
        WrongBaseError: the packs were made for another base.
        NotFoundError: the base or a pack does not exist.
        IntegrityError: a file of the base or of a pack is damaged.
        DiskError: the disk is full, too little of it is free, or the folder may not be written.
    """
    if verify not in VERIFICATIONS:
        raise UsageError(f"There is no verification {verify!r}.", hint=f"Use one of: {', '.join(VERIFICATIONS)}.")
    folder, place = new_folder(out), choose_device(device)
    plan = plan_fusion(
        base,
        packs,
        folder,
        method=method,
        weights=weights,
        densities=densities,
        options=options,
        seed=seed,
        rounding=rounding,
        dtype=dtype,
        environment=environment,
        shard_bytes=shard_bytes,
        reads_base=True,
    )
    plan.check()
    if verify == "files":
        plan = replace(plan, contributions=tuple(one.with_checked_files() for one in plan.contributions))
    pieces = partial(fused_pieces, base=plan.base, recipe=plan.recipe, contributions=plan.contributions, device=place)
    with joined_ranks() as ranks:
        tell = notice if ranks.leads else silence
        tell_declared_bases(plan.recipe, plan.located.repo, tell)
        chosen = choose_tokenizer(tokenizer, plan.checkpoint, plan.contributions, tell)
        with shared_stage(ranks, folder) as staged:
            if ranks.leads:  # what may be wrong with these comes out before the hours of merging
                _write_companions(staged, plan, chosen)
            heard = progress if ranks.leads else None
            write_shards(staged, own_shards(ranks, plan.shards), pieces, progress=heard)
    return folder


def _write_companions(staged: Path, plan: FusionPlan, tokenizer: Path) -> None:
    """Write everything but the weights."""
    write_index(staged, plan.shards)
    copy_companions(staged, plan.checkpoint, tokenizer)
    removed = set().union(*(one.removed for one in plan.contributions))
    tensors = [tensor for shard in plan.shards for tensor in shard.tensors]
    adapt_config(staged / CONFIG_FILE, plan.checkpoint, tensors, removed, plan.dtype)
    card = model_card(plan.located, plan.recipe, plan.fingerprint, dtype=plan.dtype)
    (staged / CARD_FILE).write_text(card, encoding="utf-8")
