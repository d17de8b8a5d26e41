"""Fusing: a base checkpoint and packs in, a plain checkpoint out, one tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skillhub.bases import find_base
from skillhub.canonical import HEADS, alias_candidates
from skillhub.checkpointfiles import INDEX_FILE, WEIGHTS_FILE
from skillhub.checkpoints import DTYPES, Checkpoint, dtype_tag, open_checkpoint
from skillhub.codecs.streams import tensor_bytes
from skillhub.compose.compatibility import check_packs, common_fingerprints, open_contributions
from skillhub.compose.declarations import tell_declared_bases
from skillhub.compose.lineage import CARD_FILE, model_card
from skillhub.compose.merging import Contribution, changed_names, merge_tensor, result_dtype, result_shape
from skillhub.compose.recipes import EnvironmentSource, PackSource, Recipe, make_recipe
from skillhub.compose.schedules import Amount
from skillhub.compose.verification import base_records, wrong_base
from skillhub.errors import UsageError
from skillhub.files import new_folder, staged_folder
from skillhub.fingerprint import fingerprint_checkpoint
from skillhub.interop.adapterdeltas import Target
from skillhub.interop.modules import empty_model, modules_of
from skillhub.progress import Notice, Progress
from skillhub.tensorfiles import BITS, TensorInfo, raw_bytes, write_tensors

SHARD_BYTES = 5 * 10**9
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class FusedTensor:
    """One tensor of the checkpoint that is written.

    Attributes:
        name: in the files.
        dtype: safetensors dtype tag.
        shape: its shape.
        source: canonical name of the tensor that is merged; None copies the base's bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str | None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * BITS[self.dtype] // 8


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
    environment: EnvironmentSource | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Path:
    """Write a checkpoint of a base model with packs fused into its weights.

    Each tensor is base + merged delta, summed in fp32 and rounded once into the base's dtype: the very bits that ``graft`` of the
    same packs puts into memory. Tensors are read, merged and written one at a time, so the model may be larger than memory. Tensor
    names, tied heads and untouched bytes stay as the base stores them; added tensors and rows are written, removed ones left out, and
    config.json follows (``vocab_size``, ``tie_word_embeddings``). Config, tokenizer and generation files are copied from the base, and
    a model card says what the checkpoint was made of.

    Args:
        base: a checkpoint folder or ``repo[@revision]``.
        packs: installed names, folders or opened packs, and adapters of peft; their order does not matter.
        out: the new checkpoint's folder; must not exist or be empty. It appears whole or not at all.
        method: ``linear`` or ``ties``.
        weights: one per pack, in the order of ``packs``; 1 by default.
        densities: one per pack; 1 by default.
        options: what else the method is told, by name; ``skillhub.compose.methods`` has them.
        seed: of the random masks of methods that drop elements at random.
        rounding: ``auto`` (to nearest where the packs hold a tensor exactly, else stochastic), ``nearest`` or ``stochastic``.
        environment: where pack names are looked up; the per-user environments by default.
        shard_bytes: most bytes of one safetensors file, unless one tensor is larger.
        progress: called with (``tensors``, done, all).
        notice: told what could not be verified; by default that is logged.

    Returns:
        The folder.

    Raises:
        UsageError: ``out`` is not empty, or packs, weights or methods do not go together.
        WrongBaseError: the packs were made for another base.
        NotFoundError: the base or a pack does not exist.
        IntegrityError: a file of the base or of a pack is damaged.
        DiskError: the disk is full or the folder may not be written.
    """
    folder = new_folder(out)
    located = find_base(base)
    checkpoint = open_checkpoint(located.folder)
    record = fingerprint_checkpoint(checkpoint.files)
    recipe = make_recipe(
        packs,
        method=method,
        weights=weights,
        densities=densities,
        options=options,
        seed=seed,
        rounding=rounding,
        environment=environment,
        fingerprint=lambda: record.fingerprint,
    )
    fingerprints = common_fingerprints(recipe)
    if recipe.skill_packs and record.fingerprint not in fingerprints:
        raise wrong_base(recipe, base_records(recipe, fingerprints), record)
    contributions = open_contributions(recipe, record.fingerprint, checkpoint.tensors, lambda: _target(checkpoint))
    check_packs(contributions, {name: info.shape for name, info in checkpoint.tensors.items()}, in_memory=False)
    tell_declared_bases(recipe, located.repo, notice)
    tensors = plan_tensors(checkpoint, contributions)
    with staged_folder(folder) as staged:
        _write_weights(staged, checkpoint, recipe, contributions, split_shards(tensors, shard_bytes), progress)
        for path in checkpoint.companions():
            (staged / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.folder / path, staged / path)
        removed = set().union(*(one.removed for one in contributions))
        _adapt_config(staged / CONFIG_FILE, checkpoint, tensors, removed)
        card = model_card(located, recipe, record.fingerprint)
        (staged / CARD_FILE).write_text(card, encoding="utf-8")
    return folder


def _target(checkpoint: Checkpoint) -> Target:
    """Return what adapters are applied to: the checkpoint, by the modules of an empty model of its class."""
    modules = modules_of(empty_model(checkpoint.folder))
    return Target(modules, checkpoint.tensor, checkpoint.aliases)


def plan_tensors(checkpoint: Checkpoint, contributions: Sequence[Contribution]) -> list[FusedTensor]:
    """Return the tensors that will be written, sorted by name, from headers and manifests alone.

    Raises:
        UsageError: a pack changes a tensor of a dtype that torch has no elements for.
        IntegrityError: a pack does not say of which dtype its values are.
    """
    changed = set(changed_names(contributions))
    removed = {name for one in contributions for name in one.removed}
    planned = []
    for name, info in checkpoint.stored.items():
        bare = checkpoint.canonical.get(name)
        source = bare if bare in changed else checkpoint.aliases.get(bare or "")
        if bare in removed:
            continue
        if source in changed:
            planned.append(_fused(name, source, checkpoint, contributions))
        else:
            planned.append(FusedTensor(name, info.dtype, info.shape, None))
    for bare in sorted(changed - set(checkpoint.canonical.values())):
        planned.append(_fused(stored_name(bare, checkpoint.canonical), bare, checkpoint, contributions))
    return sorted(planned, key=lambda tensor: tensor.name)


def stored_name(canonical: str, known: dict[str, str] | Any) -> str:
    """Return the name in the files for an added tensor: with the wrapper of the tensors that begin with the same component.

    Args:
        canonical: the added tensor's canonical name.
        known: name in the files → canonical name of the base's tensors.
    """
    component = canonical.partition(".")[0]
    for name, bare in known.items():
        if bare.partition(".")[0] == component:
            return f"{name.removesuffix(bare)}{canonical}"
    return canonical


def _fused(name: str, source: str, checkpoint: Checkpoint, contributions: Sequence[Contribution]) -> FusedTensor:
    info = checkpoint.tensors.get(source)
    if info is not None and info.dtype not in DTYPES:
        raise UsageError(
            f"{source} is stored as {info.dtype}, which cannot be changed.", hint="Save the base in another dtype."
        )
    dtype = None if info is None else DTYPES[info.dtype]
    shape = result_shape(contributions, source, None if info is None else info.shape)
    return FusedTensor(name, dtype_tag(result_dtype(contributions, source, dtype)), shape, source)


def _write_weights(
    folder: Path,
    checkpoint: Checkpoint,
    recipe: Recipe,
    contributions: Sequence[Contribution],
    shards: Sequence[Sequence[FusedTensor]],
    progress: Progress | None,
) -> None:
    """Write the shards, and an index where there are several."""
    count, done = sum(map(len, shards)), 0

    def data(shard: Sequence[FusedTensor]) -> Iterator[NDArray[np.uint8]]:
        nonlocal done
        for tensor in shard:
            yield _fused_bytes(tensor, checkpoint, recipe, contributions)
            done += 1
            if progress:
                progress("tensors", done, count)

    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        specs = {tensor.name: (tensor.dtype, tensor.shape) for tensor in shard}
        write_tensors(folder / file, specs, data(shard), {"format": "pt"})
        weight_map.update({tensor.name: file for tensor in shard})
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _fused_bytes(
    tensor: FusedTensor, checkpoint: Checkpoint, recipe: Recipe, contributions: Sequence[Contribution]
) -> NDArray[np.uint8]:
    if tensor.source is None:
        return raw_bytes(checkpoint.stored[tensor.name])
    info = checkpoint.tensors.get(tensor.source)
    base = None if info is None else _read(info)
    return tensor_bytes(merge_tensor(recipe, contributions, tensor.source, base, DTYPES[tensor.dtype]))


def _read(info: TensorInfo) -> torch.Tensor:
    """Read a tensor into memory of its own: pages of a mapped file would stay and count until the whole base is resident."""
    data = np.fromfile(info.file, np.uint8, count=info.nbytes, offset=info.begin)
    return torch.from_numpy(data).view(DTYPES[info.dtype]).reshape(info.shape)


def split_shards(tensors: Sequence[FusedTensor], limit: int) -> list[list[FusedTensor]]:
    """Cut a list of tensors into files of at most ``limit`` bytes (or of one larger tensor), in order."""
    shards: list[list[FusedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _adapt_config(path: Path, checkpoint: Checkpoint, tensors: Sequence[FusedTensor], removed: set[str]) -> None:
    """Make config.json agree with resized vocabularies and with heads that are tied now, or no longer."""
    if not path.is_file():
        return
    before = {name: info.shape for name, info in checkpoint.stored.items()}
    resized = {
        before[tensor.name][0]: tensor.shape[0]
        for tensor in tensors
        if tensor.name in before and before[tensor.name] != tensor.shape
    }
    added = {tensor.source for tensor in tensors if tensor.source and tensor.source not in checkpoint.tensors}
    candidates = [alias for alias, _ in alias_candidates(set(checkpoint.tensors) | added)]
    untied = any(alias in added for alias in candidates)
    tied = any(alias in removed and alias.endswith(HEADS) for alias in candidates)
    config: dict[str, Any] = json.loads(path.read_bytes())
    changed = False
    for part in [config, *(value for value in config.values() if isinstance(value, dict))]:
        if resized and part.get("vocab_size") in resized:
            part["vocab_size"] = resized[part["vocab_size"]]
            changed = True
    if (tied or untied) and config.get("tie_word_embeddings") is not tied:
        config["tie_word_embeddings"] = tied
        changed = True
    if changed:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
