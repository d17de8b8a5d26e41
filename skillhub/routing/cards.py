"""Routing cards: ``router.safetensors``, what a pack brings to tell its inputs from all others.

A card is a few linear functions of the base's early hidden states, one per layer, with what whitens the states first, and the
threshold that their mean must pass. It holds all that scoring needs: neither the prompts it was made from nor the background.
Cards come from strangers: everything is checked before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from skillhub.checkpoints import DTYPES, dtype_tag
from skillhub.errors import IntegrityError, NewerSchemaError, UnsafeContentError, WrongBaseError
from skillhub.manifest import Variant
from skillhub.packs import Pack
from skillhub.routing.contents import ChatMarkers
from skillhub.routing.discriminants import Discriminant
from skillhub.routing.whitening import Whitening
from skillhub.tensorfiles import TensorInfo, raw_bytes, read_header, write_tensors

CARD_SCHEMA = 0
MAX_CARD_BYTES = 64 << 20
MAX_HEADER_BYTES = 1 << 16
MAX_LAYERS = 16
MAX_MARKER = 64
"""Most token ids of one marker."""
LARGEST_VALUE = 1e8
"""Largest magnitude of a value: far beyond any state, and small enough for every score to be finite."""

_LAYER = re.compile(r"0|[1-9][0-9]{0,3}", re.ASCII)

_DAMAGED = "Install the pack again; if that does not help, tell its publisher."
_UNSAFE = "Do not use this pack; tell its publisher."


@dataclass(frozen=True, eq=False)
class CardLayer:
    """How a card judges the states before one layer.

    Attributes:
        layer: the layer's index.
        whitening: of the base's states there.
        discriminant: of the pack's prompts.
    """

    layer: int
    whitening: Whitening
    discriminant: Discriminant


@dataclass(frozen=True, eq=False)
class RoutingCard:
    """What a pack's prompts look like to its base.

    Attributes:
        layers: what is judged, by rising layer.
        markers: of the chat template around the prompts; None where the base's tokenizer has no template.
        threshold: what a score must exceed.
        background: SHA-256 of the background that the card was made against.
    """

    layers: tuple[CardLayer, ...]
    markers: ChatMarkers | None
    threshold: float
    background: str

    @property
    def deepest(self) -> int:
        """The last layer whose input is judged: the base runs up to it."""
        return self.layers[-1].layer

    @property
    def rank(self) -> int:
        """Dimensions of the subspace that is rescaled."""
        return max(len(one.whitening.gains) for one in self.layers)

    @property
    def hidden(self) -> int:
        """Width of the base's hidden states."""
        return len(self.layers[0].whitening.center)

    def scores(self, pooled: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Return (rows,) fp32: about 1 for prompts like the pack's, −1 for the background.

        Args:
            pooled: by layer, (rows, hidden) pooled states.

        Raises:
            WrongBaseError: the states have another width.
        """
        width = next(iter(pooled.values())).shape[1]
        if width != self.hidden:
            raise WrongBaseError(
                f"The routing card is for hidden states of {self.hidden} dimensions; the model's have {width}.",
                hint="Use the base model that the pack was made for.",
            )
        judged = [one.discriminant(one.whitening(pooled[one.layer])) for one in self.layers]
        return torch.stack(judged).mean(0)


def write_card(card: RoutingCard, path: Path) -> None:
    """Write a card; the same card gives the same bytes.

    Raises:
        DiskError: the disk is full or the folder may not be written.
    """
    tensors: dict[str, torch.Tensor] = {"threshold": torch.tensor([card.threshold], dtype=torch.float64)}
    for one in card.layers:
        tensors |= {
            f"{one.layer}.center": one.whitening.center,
            f"{one.layer}.basis": one.whitening.basis,
            f"{one.layer}.gains": one.whitening.gains,
            f"{one.layer}.direction": one.discriminant.direction,
            f"{one.layer}.offset": torch.tensor([one.discriminant.offset], dtype=torch.float64),
        }
    if card.markers is not None:
        tensors["before"] = torch.tensor(card.markers.before, dtype=torch.int64)
        tensors["after"] = torch.tensor(card.markers.after, dtype=torch.int64)
    specs = {name: (dtype_tag(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}
    metadata = {"schema": str(CARD_SCHEMA), "background": card.background}
    write_tensors(path, specs, (tensor.contiguous().numpy() for tensor in tensors.values()), metadata)


def read_card(pack: Pack, variant: Variant) -> RoutingCard | None:
    """Return the routing card of a pack's variant, or None where it has none.

    Raises:
        IntegrityError: the card is missing or damaged, or the manifest says something else of it.
        UnsafeContentError: it claims to be far larger than any card.
        NewerSchemaError: it is of a schema that this version does not read.
    """
    if variant.router is None:
        return None
    path = pack.path_of(next(entry for entry in variant.files if entry.path == variant.router.path))
    with _of(pack):
        card = parse_card(path)
        if (card.deepest, card.rank, card.threshold) != (
            variant.router.layer,
            variant.router.rank,
            variant.router.threshold,
        ):
            raise IntegrityError("The routing card is not the one that the manifest describes.", hint=_DAMAGED)
    return card


def parse_card(path: Path) -> RoutingCard:
    """Read and check a card's file.

    Raises:
        IntegrityError, UnsafeContentError, NewerSchemaError: as for :func:`read_card`.
    """
    if not path.is_file():
        raise IntegrityError(f"{path} is missing.", hint=_DAMAGED, path=str(path))
    if path.stat().st_size > MAX_CARD_BYTES:
        raise UnsafeContentError(
            f"The routing card is {path.stat().st_size} bytes long; none has more than {MAX_CARD_BYTES}.", hint=_UNSAFE
        )
    file = read_header(path, limit=MAX_HEADER_BYTES)
    if file.metadata.get("schema") != str(CARD_SCHEMA):
        raise NewerSchemaError(
            f"The routing card has schema {file.metadata.get('schema', '')[:20]}; this version of skillhub reads {CARD_SCHEMA}.",
            hint="Upgrade skillhub: pip install --upgrade skillhub-packs.",
        )
    values = {name: _values(info) for name, info in file.tensors.items()}
    numbers = sorted({name.partition(".")[0] for name in values if "." in name}, key=lambda text: (len(text), text))
    if not 0 < len(numbers) <= MAX_LAYERS:
        raise _damaged(f"it judges {len(numbers)} layers")
    if wrong := [text for text in numbers if not _LAYER.fullmatch(text)]:
        raise _damaged(f"{wrong[0][:60]!r} is no layer")
    layers = tuple(_layer(values, text) for text in numbers)
    if len({len(one.whitening.center) for one in layers}) > 1:
        raise _damaged("its layers differ in width")
    markers = _markers(values) if "before" in values or "after" in values else None
    threshold = _number(values, "threshold")
    if values:
        raise _damaged(f"nothing reads its tensor {min(values)[:60]!r}")
    return RoutingCard(layers, markers, threshold, file.metadata.get("background", ""))


def _layer(values: dict[str, torch.Tensor], number: str) -> CardLayer:
    center = _take(values, f"{number}.center", torch.float32, 1)
    basis = _take(values, f"{number}.basis", torch.float16, 2)
    gains = _take(values, f"{number}.gains", torch.float32, 1)
    direction = _take(values, f"{number}.direction", torch.float32, 1)
    hidden = len(center)
    if not hidden or direction.shape != center.shape or tuple(basis.shape) != (len(gains), hidden):
        raise _damaged(f"the shapes for layer {number} do not go together")
    offset = _number(values, f"{number}.offset")
    return CardLayer(int(number), Whitening(center, basis, gains), Discriminant(direction, offset))


def _markers(values: dict[str, torch.Tensor]) -> ChatMarkers:
    found = [_take(values, name, torch.int64, 1).tolist() for name in ("before", "after")]
    if max(map(len, found)) > MAX_MARKER:
        raise _damaged("its markers are longer than any template's")
    return ChatMarkers(tuple(found[0]), tuple(found[1]))


def _number(values: dict[str, torch.Tensor], name: str) -> float:
    tensor = _take(values, name, torch.float64, 1)
    if len(tensor) != 1:
        raise _damaged(f"{name} is not one number")
    return float(tensor)


def _take(values: dict[str, torch.Tensor], name: str, dtype: torch.dtype, dimensions: int) -> torch.Tensor:
    if name not in values:
        raise _damaged(f"it lacks {name}")
    tensor = values.pop(name)
    if tensor.dtype != dtype or tensor.dim() != dimensions:
        raise _damaged(f"{name} is {tensor.dtype} {list(tensor.shape)}")
    if tensor.is_floating_point() and not _is_bounded(tensor):
        raise _damaged(f"{name} holds values that are infinite, no numbers, or beyond {LARGEST_VALUE:g}")
    return tensor


def _is_bounded(tensor: torch.Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    low, high = map(float, torch.aminmax(tensor))
    return low >= -LARGEST_VALUE and high <= LARGEST_VALUE  # not so for NaN


def _values(info: TensorInfo) -> torch.Tensor:
    if info.dtype not in DTYPES:
        raise _damaged(f"{info.name[:60]!r} is stored as {info.dtype}")
    if not info.nbytes:  # torch takes no bytes for no values of another dtype
        return torch.empty(info.shape, dtype=DTYPES[info.dtype])
    return torch.from_numpy(np.array(raw_bytes(info))).view(DTYPES[info.dtype]).reshape(info.shape)


def _damaged(what: str) -> IntegrityError:
    return IntegrityError(f"The routing card is damaged: {what}.", hint=_DAMAGED)


@contextmanager
def _of(pack: Pack) -> Iterator[None]:
    """Say of errors whose card it is."""
    try:
        yield
    except (IntegrityError, UnsafeContentError, NewerSchemaError) as error:
        told = type(error)(f"{pack}: {error.message}", hint=error.hint, **error.details)
        raise told from error
