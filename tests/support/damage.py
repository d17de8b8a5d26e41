"""A tiny pack in which every codec has a tensor, ways to damage it, and what reading it to the last byte gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from safetensors.torch import save_file

from skillhub.checkpoints import open_checkpoint
from skillhub.codecs import (
    EncodedPart,
    EncodedTensor,
    content_digest,
    decoded_digest,
    exact,
    factors,
    lossless,
    lowrank,
    residual,
    restoration,
    rows,
    sign,
    sparse,
    zero,
)
from skillhub.codecs.lowrank import LineExponents
from skillhub.errors import SkillhubError
from skillhub.packdeltas import open_delta
from skillhub.packs import Pack, file_entry, open_pack, verify_pack, write_manifest
from skillhub.routing.cards import CardLayer, RoutingCard, read_card
from skillhub.routing.contents import ChatMarkers
from skillhub.routing.discriminants import Discriminant
from skillhub.routing.whitening import Whitening
from skillhub.routingcards import RouterInfo
from tests.support.handmade_packs import Handmade, write_pack

SHAPE = (24, 16)
FILE_LIMIT = 6000
"""Of the delta files, so that there are several, and one array lies in two."""


def every_codec() -> dict[str, tuple[EncodedTensor, torch.Tensor | None]]:
    """Return canonical name → a tensor encoded by the codec in its name, and its base's where it takes that to be decoded."""
    draw = torch.Generator().manual_seed(0)
    delta = torch.randn(SHAPE, generator=draw) * 0.01
    few = torch.where(torch.rand(SHAPE, generator=draw) < 0.1, delta, 0.0)
    adapter = factors.AdapterFactors(
        torch.randn(2, SHAPE[1], generator=draw), torch.randn(SHAPE[0], 2, generator=draw).bfloat16(), 0.5
    )
    components = _components()
    bases = {dtype: torch.randn(SHAPE, generator=draw).to(dtype) for dtype in (torch.bfloat16, torch.float32)}
    large = torch.randn(96, 64, generator=draw).bfloat16()
    predicted = large.float() + torch.outer(torch.arange(96) / 3e3, torch.arange(64) / 64)
    rough = (large + 0.01 * torch.randn(96, 64, generator=draw)).bfloat16()
    return {
        "exact.add": (exact.encode(delta), None),
        "exact.set": (exact.encode(torch.arange(384).reshape(SHAPE), operation="set"), None),
        "zero": (zero.encode(SHAPE), None),
        "lowrank": (_tensor(lowrank.encode(components)), None),
        "lowrank.rows": (_tensor(lowrank.encode(components), rows.encode(delta, [3, 4, 20])), None),
        "residual": (_tensor(residual.encode(delta, 0.004, row_exponents=np.arange(24, dtype=np.int8))), None),
        "sparse": (_tensor(sparse.encode(few)), None),
        "sign": (_tensor(sign.encode(delta)), None),
        "factors": (_tensor(factors.encode(adapter)), None),
        "lossless": (lossless.encode(rough, large), large),
        "lossless.predicted": (restoration.encode("x", predicted.bfloat16(), large), large),
        "lossless.wide": (lossless.encode(bases[torch.float32] + delta, bases[torch.float32]), bases[torch.float32]),
    }


def _tensor(*parts: EncodedPart) -> EncodedTensor:
    return EncodedTensor(SHAPE, parts)


def _components() -> lowrank.Components:
    draw = np.random.default_rng(1)
    sides = [np.rint(draw.normal(size=(3, size)) * [[40], [4], [0.7]]).astype(np.int16) for size in SHAPE]
    lines = LineExponents(*(draw.integers(-2, 3, size).astype(np.int8) for size in SHAPE))
    components = lowrank.choose_groups(sides[0], sides[1], np.array([3.0, 0.5, 0.001]), lines)
    assert components is not None
    return components


@dataclass(frozen=True)
class Sample:
    """The pack in a folder, its base, and what it decodes to.

    Attributes:
        pack: whole.
        base: folder of the base's checkpoint.
        digests: canonical name → digest of what a tensor decodes to.
        files: path in the pack → its bytes.
    """

    pack: Pack
    base: Path
    digests: dict[str, str]
    files: dict[str, bytes]

    def restore(self) -> None:
        """Undo all damage."""
        for path, data in self.files.items():
            (self.pack.folder / path).write_bytes(data)

    def write(self, path: str, data: bytes, *, hide: bool = False) -> None:
        """Put other bytes into a file of the pack; ``hide`` that from the manifest's digests."""
        (self.pack.folder / path).write_bytes(data)
        if hide:
            variant = self.pack.manifest.variants[0]
            kept = [entry for entry in variant.files if entry.path != path]
            changed = structs.replace(variant, files=[*kept, file_entry(self.pack.folder, path)])
            write_manifest(self.pack.folder, structs.replace(self.pack.manifest, variants=[changed]))

    def read(self) -> bool:
        """Read the pack as it now is, every tensor of it; say whether it decodes to what it should.

        Raises:
            SkillhubError: it is damaged.
        """
        pack = open_pack(self.pack.folder)
        for finding in verify_pack(pack):
            raise finding
        read_card(pack, pack.only_variant())
        delta = open_delta(pack, base=open_checkpoint(self.base)).with_checked_files()
        found = {}
        for name in delta.names:
            tensor = delta.restored(name) if delta.restores(name) else delta.decode(name)
            found[name] = content_digest(delta.encoded(name), tensor) if name == "factors" else decoded_digest(tensor)
        return found == self.digests

    def skim(self) -> None:
        """Read tensors a few rows at a time, as composing does with files whose digests are right; that any of it is damaged is no error here."""
        with suppress(SkillhubError):
            delta = open_delta(open_pack(self.pack.folder)).with_checked_files()
            for name in delta.names:
                with suppress(SkillhubError):
                    if not delta.restores(name) and not delta.sets_values(name):
                        delta.reader(name).read(0, 5)


def build_sample(folder: Path) -> Sample:
    """Write the pack, with a routing card, and its base below a folder."""
    tensors = every_codec()
    bases = {
        name: torch.zeros(one.shape, dtype=torch.bfloat16) if base is None else base
        for name, (one, base) in tensors.items()
    }
    (folder / "base").mkdir(parents=True)
    save_file({name: tensor.clone() for name, tensor in bases.items()}, folder / "base" / "model.safetensors")
    handmade = (Handmade(name, encoded.shape, encoded, base) for name, (encoded, base) in tensors.items())
    pack = write_pack(folder / "pack", folder / "base", handmade, name="sample", card=_card(), file_limit=FILE_LIMIT)
    entries = pack.only_variant().codec.tensors
    digests = {name: str(entry.digest) for name, entry in entries.items()}
    files = {
        path.relative_to(pack.folder).as_posix(): path.read_bytes()
        for path in sorted(pack.folder.rglob("*"))
        if path.is_file()
    }
    return Sample(pack, folder / "base", digests, files)


def _card() -> tuple[RoutingCard, RouterInfo]:
    whitening = Whitening(torch.linspace(-1, 1, 8), torch.eye(8, dtype=torch.float16)[:2], torch.tensor([-0.5, -0.2]))
    layer = CardLayer(1, whitening, Discriminant(torch.ones(8), 0.25))
    card = RoutingCard((layer,), ChatMarkers((1, 2), (3,)), 0.5, "0" * 64)
    return card, RouterInfo(path="", layer=1, pooling="mean", template=None, rank=2, threshold=0.5)


def flips(files: dict[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield files with one byte of the pack changed, any of them as likely as any other."""
    draw = np.random.default_rng(seed)
    paths, sizes = list(files), np.array([len(data) for data in files.values()])
    for at in draw.integers(0, sizes.sum(), count):
        number = int(np.searchsorted(np.cumsum(sizes), at, side="right"))
        data = bytearray(files[paths[number]])
        data[int(at - sizes[:number].sum())] ^= int(draw.integers(1, 256))
        yield paths[number], bytes(data)


def truncations(files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield every file cut at every place."""
    for path, data in files.items():
        for size in range(len(data)):
            yield path, data[:size]


def outcome(sample: Sample, path: str, data: bytes, *, hide: bool = False) -> str:
    """Damage the pack, read it, put it back, and return what came of it: ``refused``, ``no difference`` or what is wrong."""
    try:
        sample.write(path, data, hide=hide)
        if hide:
            sample.skim()
        told = "no difference" if sample.read() else f"WRONG VALUES after {path} was changed"
    except SkillhubError as error:
        told = "refused" if error.message and error.hint else f"NOT A CLEAR ERROR: {error!r}"
    except Exception as error:
        told = f"CRASH after {path} was changed: {error!r}"
    sample.restore()
    return told
