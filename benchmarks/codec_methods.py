"""The ways of storing a delta that are compared: each ends as a file's size and decoded fp32 deltas by tensor."""

from __future__ import annotations

import lzma
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors.torch import save_file

import skillhub
from skillhub.authorfile import AuthorFile
from skillhub.canonical import canonical_names, is_vocabulary_tensor
from skillhub.checkpoints import Checkpoint, open_checkpoint
from skillhub.codecs import EncodedTensor, decode
from skillhub.deltafiles import DeltaWriter
from skillhub.deltas import Delta, difference
from skillhub.packdeltas import PackDelta, open_delta
from skillhub.recipes import RECIPES, svdlora
from skillhub.recipes.encoding import Compressed, keep_exactly
from skillhub.tensorfiles import raw_bytes

Moments = Mapping[str, torch.Tensor]
"""Canonical name of a linear layer's weight → fp32 second moment of its inputs."""

DATA_FREE, CALIBRATED, PEER, PUBLISHED = "skillhub, data-free", "skillhub, calibrated", "peer", "as published"
LOSSY = ("near", "small", "tiny")


@dataclass(frozen=True)
class Method:
    """A compressed delta.

    Attributes:
        name: what it is called in the report.
        family: :data:`DATA_FREE`, :data:`CALIBRATED`, :data:`PEER` or :data:`PUBLISHED`.
        size: bytes.
        read: canonical name → decoded fp32 delta.
        seconds: CPU seconds that compressing took.
    """

    name: str
    family: str
    size: int
    read: Callable[[str], torch.Tensor]
    seconds: float


def our_packs(
    delta: Delta, scratch: Path, prompts: Sequence[str], ladder: Sequence[int], wanted: Callable[[str], bool]
) -> Iterator[Method]:
    """Yield our packs: presets without and with calibration, and calibrated ones of a ladder of sizes.

    Args:
        delta: between the checkpoints.
        scratch: where they are built.
        prompts: to calibrate with.
        ladder: how many times smaller than the base's weights each further pack is.
        wanted: says of a name whether it is still to be measured.
    """
    whole = sum(info.nbytes for info in delta.base.tensors.values())
    sizes: list[tuple[str, dict[str, Any]]] = [(preset, {"preset": preset}) for preset in LOSSY]
    sizes += [(f"1/{part}", {"budget_bytes": whole // part}) for part in ladder]
    for family, given in ((DATA_FREE, None), (CALIBRATED, list(prompts))):
        for label, how in sizes:
            name = f"{family}, {label}"
            if wanted(name) and (given or label in LOSSY):
                yield _our_pack(delta, scratch / f"pack-{'calibrated' if given else 'plain'}", name, family, given, how)


def _our_pack(
    delta: Delta, folder: Path, name: str, family: str, prompts: list[str] | None, how: dict[str, Any]
) -> Method:
    shutil.rmtree(folder, ignore_errors=True)
    started = time.process_time()
    tuned, base = delta.tuned.files[0].parent, delta.base.files[0].parent
    built = skillhub.pack(tuned, base, folder, metadata=AuthorFile(name="bench", version="1.0"), prompts=prompts, **how)
    seconds = time.process_time() - started
    opened = open_delta(built, base=delta.base).with_checked_files()
    return Method(name, family, pack_size(folder), partial(_read_pack, opened, delta), seconds)


def pack_size(folder: Path) -> int:
    """Return the bytes of a pack's files; its routing card, which decoding does not need, is left out."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "router" not in path.name)


def _read_pack(opened: PackDelta, delta: Delta, name: str) -> torch.Tensor:
    if name not in opened.tensors:
        return torch.zeros(delta.base.tensors[name].shape)
    return opened.decode(name)


def peers(
    delta: Delta, scratch: Path, moments: Callable[[], Moments], wanted: Callable[[str], bool]
) -> Iterator[Method]:
    """Yield the published recipes with embeddings by our codec, in our container, and then as they were published.

    Args:
        delta: between the checkpoints.
        scratch: where they are written.
        moments: computes the second moments of the inputs of the linear layers.
        wanted: says of a name whether it is still to be measured.
    """
    ours: PackDelta | None = None
    seen: Moments | None = None
    for label, recipe, calibrated in _recipes():
        names = (label, f"{label}, as published")
        if not any(map(wanted, names)):
            continue
        if calibrated and seen is None:
            seen = moments()
        if ours is None:
            ours = _near_pack(delta, scratch / "near")
        started = time.process_time()
        made = {}
        for name in _changed(delta):
            change = delta.tensor(name)
            made[name] = recipe(name, change, seen.get(name) if calibrated and seen else None)
        seconds = time.process_time() - started
        mixed = {name: ours.encoded(name) if is_embedding(name) else one.encoded for name, one in made.items()}
        size = min(_written_size(mixed, scratch / "peer"), _published_size(made, ours))
        yield Method(label, PEER, size, cache(partial(_read_encoded, mixed, delta)), seconds)
        kept = {
            name: keep_exactly(delta.tensor(name)) if is_embedding(name) and _keeps_embeddings(label) else one
            for name, one in made.items()
        }
        size = sum(one.published_bytes for one in kept.values())
        stored = {name: one.encoded for name, one in kept.items()}
        yield Method(names[1], PUBLISHED, size, cache(partial(_read_encoded, stored, delta)), seconds)


def _near_pack(delta: Delta, folder: Path) -> PackDelta:
    """Return our pack of the preset ``near``, data-free, whose embeddings the peers are given."""
    _our_pack(delta, folder, "", DATA_FREE, None, {"preset": "near"})
    return open_delta(skillhub.open_pack(folder), base=delta.base)


def _recipes() -> list[tuple[str, Callable[..., Compressed], bool]]:
    """Return (name in the report, recipe, whether it is calibrated)."""
    svd = {f"SVD r={rank}, fp16": partial(_truncate, svdlora.Options(rank=rank)) for rank in (32, 8)}
    return [
        ("Delta-CoMe, nearest", RECIPES["delta-come"], False),
        ("Delta-CoMe, GPTQ", RECIPES["delta-come"], True),
        ("GraftLLM, GPTQ", RECIPES["graftllm"], True),
        ("BitDelta", RECIPES["bitdelta"], False),
        *((label, recipe, False) for label, recipe in svd.items()),
    ]


def _truncate(options: svdlora.Options, name: str, change: torch.Tensor, moment: torch.Tensor | None) -> Compressed:
    return svdlora.compress(name, change, moment, options)


def _keeps_embeddings(label: str) -> bool:
    """Say whether a recipe leaves embeddings in 16 bits; GraftLLM prunes them, and a LoRA may hold them."""
    return label.startswith(("Delta-CoMe", "BitDelta"))


def is_embedding(name: str) -> bool:
    """Say whether a canonical name is that of an embedding, of tokens, positions or segments, or of the output head."""
    return name.endswith(".weight") and (is_vocabulary_tensor(name) or "_embeddings." in name)


def _changed(delta: Delta) -> list[str]:
    return [name for name in delta.names if not delta.is_unchanged(name)]


def _written_size(tensors: Mapping[str, EncodedTensor], folder: Path) -> int:
    """Return the bytes of the files that tensors take in our container."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    writer = DeltaWriter(folder)
    for name, encoded in tensors.items():
        writer.add(name, encoded)
    writer.close()
    return sum(path.stat().st_size for path in folder.iterdir())


def _published_size(made: Mapping[str, Compressed], ours: PackDelta) -> int:
    """Return the bytes of a recipe's own form, with embeddings by our codec and without any headers."""
    return sum(ours.entry(name).bytes if is_embedding(name) else one.published_bytes for name, one in made.items())


def _read_encoded(tensors: Mapping[str, EncodedTensor], delta: Delta, name: str) -> torch.Tensor:
    base = delta.base.tensor(name)
    if name not in tensors:
        return torch.zeros(base.shape)
    decoded = decode(tensors[name], base)
    return difference(decoded, base) if tensors[name].operation == "restore" else decoded


def delta_tensors(delta: Delta, scratch: Path) -> Method | None:
    """Return what the package ``deltatensors`` makes of it (4 bits and outliers, its default); None where it is not installed."""
    try:
        import deltatensors
    except ModuleNotFoundError:
        print("deltatensors is not installed: pip install deltatensors", file=sys.stderr)
        return None
    started = time.process_time()
    file = scratch / "deltatensors.wdelta"
    tuned, base = (str(_with_shared_tensors(one, delta, scratch)) for one in (delta.tuned, delta.base))
    deltatensors.save_delta_from_paths(str(file), tuned, base, strategy="int4")
    seconds = time.process_time() - started
    rebuilt = deltatensors.load_delta_from_paths(str(file), base)
    stored = {canonical: name for name, canonical in delta.base.canonical.items()}

    def read(name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(rebuilt[stored[name]], dtype=np.float32)) - delta.base.tensor(name).float()

    return Method("deltatensors, int4", PEER, file.stat().st_size, read, seconds)


def _with_shared_tensors(checkpoint: Checkpoint, delta: Delta, scratch: Path) -> Path:
    """Return the folder of a checkpoint, or of a copy without the buffers that only one of the two has."""
    if set(delta.base.stored) == set(delta.tuned.stored):
        return checkpoint.files[0].parent
    folder = scratch / ("base" if checkpoint is delta.base else "tuned")
    folder.mkdir(exist_ok=True)
    names = {name: canonical for name, canonical in checkpoint.canonical.items() if canonical in checkpoint.tensors}
    tensors = {name: checkpoint.tensor(canonical).contiguous() for name, canonical in names.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def second_moments(model: Any, inputs: Sequence[torch.Tensor]) -> Moments:
    """Return the second moment of what each linear layer is given; layers that are given the same share one.

    Args:
        model: the fine-tune, fp32.
        inputs: token ids, (1, tokens) each.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    names = canonical_names(shapes)
    found: dict[str, torch.Tensor] = {}
    last: list[Any] = [None, None]

    def add(name: str, module: Any, given: tuple[torch.Tensor, ...]) -> None:
        if given[0] is not last[0]:
            last[:] = given[0], found.get(name)
            states = given[0].flatten(0, -2)
            last[1] = states.T @ states if last[1] is None else last[1].addmm_(states.T, states)
        found[name] = last[1]

    hooks = [
        module.register_forward_pre_hook(partial(add, names[f"{path}.weight"]))
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and f"{path}.weight" in names
    ]
    with torch.no_grad():
        for ids in inputs:
            model.base_model(ids)
    for hook in hooks:
        hook.remove()
    count = sum(ids.numel() for ids in inputs)
    for moment in {id(moment): moment for moment in found.values()}.values():
        moment /= count
    return found


def lossless_sizes(delta: Delta, scratch: Path) -> dict[str, int]:
    """Return the bytes of lossless forms of the difference: ours, and general compressors of the plain one.

    The plain difference is that of the weights' bits, taken as unsigned integers of their width.

    Raises:
        SystemExit: our pack does not restore every tensor byte for byte.
    """
    plain = scratch / "difference.bin"
    with plain.open("wb") as stream:
        for name in delta.names:
            base, tuned = (raw_bytes(one.tensors[name]) for one in (delta.base, delta.tuned))
            width = np.dtype(f"<u{4 if delta.base.tensors[name].dtype == 'F32' else 2}")
            stream.write((np.frombuffer(tuned, width) - np.frombuffer(base, width)).tobytes())
    sizes = {"zstd -19": _compressed_size(plain, zstandard.ZstdCompressor(level=19).compressobj())}
    sizes["xz -9e"] = _compressed_size(plain, lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME))
    plain.unlink()
    sizes["skillhub `lossless`"] = _lossless_pack(delta, scratch)
    return sizes


def _compressed_size(path: Path, compressor: Any) -> int:
    size = 0
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            size += len(compressor.compress(piece))
    return size + len(compressor.flush())


def _lossless_pack(delta: Delta, scratch: Path) -> int:
    tuned, base = delta.tuned.files[0].parent, delta.base.files[0].parent
    author = AuthorFile(name="bench", version="1.0")
    for name in ("lossless", "fused"):
        shutil.rmtree(scratch / name, ignore_errors=True)
    built = skillhub.pack(tuned, base, scratch / "lossless", metadata=author, preset="lossless")
    skillhub.fuse(base, [str(built.folder)], scratch / "fused")
    fused = open_checkpoint(scratch / "fused")
    for name, info in delta.tuned.tensors.items():
        if not np.array_equal(raw_bytes(info), raw_bytes(fused.tensors[name])):
            raise SystemExit(f"the lossless pack does not restore {name}")
    return pack_size(built.folder)
