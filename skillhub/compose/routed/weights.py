"""The weights that packs give to parameters, beside the model's own: made when first used or in advance, within a limit of memory.

They are the bits that grafting the one pack fused would write.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, TypeAlias

import torch

from skillhub.compose.merging import Contribution, merge_tensor
from skillhub.compose.recipes import Recipe
from skillhub.compose.routed.batches import refuse_pickling
from skillhub.compose.schedules import Schedule
from skillhub.devices import available_bytes
from skillhub.errors import UsageError
from skillhub.layout import Layout

PackKey: TypeAlias = tuple[str, float | Schedule, str]
"""Digest of a pack, its weight and how sums with it are rounded: it outlasts the pack's index."""

Key: TypeAlias = tuple[PackKey, tuple[str, ...]]
"""Pack; and names of parameters."""


@dataclass(frozen=True)
class Family:
    """Parameters that belong together, since some checkpoint tensor holds elements of all of them; mostly one.

    Attributes:
        parameters: their qualified names.
        tensors: canonical names of the tensors that they hold.
    """

    parameters: tuple[str, ...]
    tensors: tuple[str, ...]


def parameter_families(layout: Layout) -> dict[str, Family]:
    """Return the family of every parameter of a layout, by the parameter's name."""
    members: dict[str, set[str]] = {}
    for slot in layout.slots.values():
        joined = set(slot.parameter_names).union(*(members.get(name, set()) for name in slot.parameter_names))
        members.update(dict.fromkeys(joined, joined))
    tensors: dict[str, list[str]] = defaultdict(list)
    for name, slot in layout.slots.items():
        tensors[min(members[slot.parameter_names[0]])].append(name)
    families = {first: Family(tuple(sorted(members[first])), tuple(names)) for first, names in tensors.items()}
    return {parameter: families[min(joined)] for parameter, joined in members.items()}


@dataclass(eq=False)
class PackWeights:
    """Gives parameters under a pack; remembers as many as the limit allows, and lets the least recently used go.

    Attributes:
        layout: the model's.
        families: of :func:`parameter_families`.
        recipes: for each pack, of itself alone.
        contributions: the packs.
        sources: canonical name → the tensor whose differences it takes (itself, but for untied copies).
        limit: bytes; None for no limit.
        known: weights from before packs were added or taken out, which are taken over.
    """

    layout: Layout
    families: Mapping[str, Family]
    recipes: Sequence[Recipe]
    contributions: Sequence[Contribution]
    sources: Mapping[str, str]
    limit: int | None = None
    known: InitVar[PackWeights | None] = None

    def __post_init__(self, known: PackWeights | None) -> None:
        self._kept: OrderedDict[Key, dict[str, torch.Tensor]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        mine = {self.key_of(pack) for pack in range(len(self.recipes))}
        for key, made in known._kept.items() if known else ():
            if key[0] in mine:
                self._keep(key, made)

    def _key(self, pack: int, family: Family) -> Key:
        """Return what the weights of a pack and a family are kept by."""
        return self.key_of(pack), family.parameters

    def key_of(self, pack: int) -> PackKey:
        """Return what tells a pack's weights from those of others, and from those that it has with another weight."""
        recipe, (item,) = self.recipes[pack], self.recipes[pack].packs
        return item.pack.digest, item.weight, recipe.rounding

    def __deepcopy__(self, memo: dict[int, Any]) -> PackWeights:
        """Return what a copy of the model reads: its own parameters, and the same weights of packs, which nobody changes."""
        made = object.__new__(PackWeights)
        memo[id(self)] = made
        made.__dict__.update(self.__dict__)
        made.layout = copy.deepcopy(self.layout, memo)
        made._kept, made._lock = OrderedDict(self._kept), threading.Lock()
        return made

    def __reduce__(self) -> str:
        """Refuse to be pickled, as :func:`skillhub.compose.routed.batches.refuse_pickling`."""
        refuse_pickling()

    def changes(self, pack: int, parameter: str) -> bool:
        """Say whether a pack changes a parameter."""
        names = self.contributions[pack].names
        return any(self.sources[name] in names for name in self.families[parameter].tensors)

    def get(self, pack: int, parameter: str) -> torch.Tensor:
        """Return a parameter as it is under a pack, on the device of the model's own.

        Raises:
            IntegrityError: the pack's bytes are damaged.
        """
        family = self.families[parameter]
        key = self._key(pack, family)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found[parameter]
        made = self._make(pack, family)
        with self._lock:
            self._keep(key, made)
        return made[parameter]

    def _keep(self, key: Key, made: dict[str, torch.Tensor]) -> None:
        if key in self._kept:  # another thread was faster
            return
        self._kept[key] = made
        self._bytes += size_of(made.values())
        while self.limit is not None and self._bytes > self.limit and self._kept:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= size_of(gone.values())

    @torch.inference_mode(False)  # they outlast this forward, and the next may have gradients
    def _make(self, pack: int, family: Family) -> dict[str, torch.Tensor]:
        slots = [self.layout.slots[name] for name in family.tensors]
        own = {
            name: parameter.detach()
            for slot in slots
            for name, parameter in zip(slot.parameter_names, slot.parameters(), strict=True)
        }
        values = {name: tensor.to("cpu", copy=True) for name, tensor in own.items()}
        contribution, names = self.contributions[pack], self.contributions[pack].names
        for slot in slots:
            source = self.sources[slot.name]
            if source in names:
                base = slot.read().to("cpu")
                merged = merge_tensor(self.recipes[pack], [contribution], source, base, slot.dtype)
                slot.within(values).write(merged)
        return {name: values[name].to(tensor.device) for name, tensor in own.items()}

    def bytes_of(self, wanted: Iterable[tuple[int, str]]) -> int:
        """Return how many bytes the weights of some packs and parameters take, from shapes alone."""
        keys = {(pack, self.families[parameter].parameters) for pack, parameter in wanted}
        return sum(self._family_bytes(parameters) for _, parameters in keys)

    def missing_bytes(self, wanted: Iterable[tuple[int, str]]) -> int:
        """Return the same of those that are not in memory yet."""
        return self.bytes_of(self.missing(wanted))

    def missing(self, wanted: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
        """Return those (pack, parameter) whose weights are not in memory yet, one of those that are made together."""
        keys = {self._key(pack, self.families[parameter]): (pack, parameter) for pack, parameter in wanted}
        return [one for key, one in keys.items() if key not in self._kept]

    def _family_bytes(self, parameters: tuple[str, ...]) -> int:
        slots = [self.layout.slots[name] for name in self.families[parameters[0]].tensors]
        tensors = {
            name: parameter
            for slot in slots
            for name, parameter in zip(slot.parameter_names, slot.parameters(), strict=True)
        }
        return size_of(tensors.values())


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return how many bytes tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def resized_error(parameter: str, shape: tuple[int, ...]) -> UsageError:
    """Return the error for a parameter that has another shape than when packs were grafted."""
    return UsageError(
        f"{parameter} was resized to {list(shape)} since packs were grafted.",
        hint="Ungraft, resize, and fuse packs into a checkpoint; or load the base model again.",
        tensor=parameter,
    )


def check_room(needed: int, device: torch.device) -> None:
    """Refuse to take memory that is not there.

    Raises:
        UsageError: the device has less than ``needed`` bytes left.
    """
    left = available_bytes(device)
    if left is not None and needed > left:
        raise UsageError(
            f"The packs' weights take {readable_bytes(needed)} beside the model, and {device} has {readable_bytes(left)} left.",
            hint="Pass memory='codes' to graft, which decodes them when they are used, or graft fewer packs.",
        )


def readable_bytes(count: int) -> str:
    """Return a number of bytes for people."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
