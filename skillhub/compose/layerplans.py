"""Which tensors of which models become each tensor of a merged model: whole models over each other, or slices of layers in a row.

Everything here is about canonical names; no model is opened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from skillhub.compose.schedules import depth
from skillhub.interop.mergekit.configurations import Configuration, Module, Slice, Source
from skillhub.interop.mergekit.models import ModelName

Names = Mapping[ModelName, Collection[str]]
"""Model → canonical names of its tensors."""

_MOST_DIGITS = 9
"""Of a layer's number; what has more is a name that someone made up."""


@dataclass(frozen=True)
class LayerName:
    """A canonical name that lies in a layer, cut at the layer's number.

    Attributes:
        stack: what stands before the number, such as ``layers`` or ``encoder.block``.
        number: of the layer, from 0.
        rest: what stands after it.
    """

    stack: str
    number: int
    rest: str

    def at(self, number: int) -> str:
        """Return the name of the same tensor in another layer."""
        return f"{self.stack}.{number}.{self.rest}"


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the result.

    Attributes:
        name: its canonical name.
        inputs: canonical name in each source of the slice, in their order.
        part: the slice that it is made in.
        module: the part of the model that it belongs to.
        position: where its layer lies in the slice, from 0 to 1; 0 outside of layers.
    """

    name: str
    inputs: tuple[str, ...]
    part: Slice
    module: Module
    position: float = 0.0


@dataclass(frozen=True)
class LayerOrigin:
    """Where a layer of the result has what a config says of single layers: in the first source of its slice.

    Attributes:
        model: whose layer it is.
        number: which, from 0.
    """

    model: ModelName
    number: int


def split_layer(name: str) -> LayerName | None:
    """Cut a canonical name at the number of its layer; None for a tensor outside of layers."""
    components = name.split(".")
    for place, component in enumerate(components[:-1]):
        if place and component.isdecimal() and len(component) <= _MOST_DIGITS:
            return LayerName(".".join(components[:place]), int(component), ".".join(components[place + 1 :]))
    return None


def stack_lengths(names: Iterable[str]) -> dict[str, int]:
    """Return how many layers each stack of a model has, by what stands before their numbers."""
    lengths: dict[str, int] = {}
    for name in names:
        if cut := split_layer(name):
            lengths[cut.stack] = max(lengths.get(cut.stack, 0), cut.number + 1)
    return lengths


def plan_layers(configuration: Configuration, names: Names) -> list[PlannedTensor]:
    """Return every tensor of the result with the tensors it is made from.

    Args:
        configuration: what is asked for.
        names: of every model that takes part.

    Raises:
        UsageError: layers are asked for that a model lacks, or the model has parts that are not named.
    """
    planned: list[PlannedTensor] = []
    for part, module in configuration.modules.items():
        own = {model: _part_of(module, part, list(known)) for model, known in names.items()}
        sliced = module.slices[0].sources[0].layers is not None
        planned += _plan_slices(module, own) if sliced else _plan_whole(module, own)
        if sliced and len(configuration.modules) > 1:
            _check_length(part, module, own)
    _check_complete(configuration, names, planned)
    return sorted(planned, key=lambda tensor: tensor.name)


def layer_origins(configuration: Configuration) -> list[LayerOrigin] | None:
    """Return where each layer of the result comes from; None where whole models are merged."""
    (module, *others) = configuration.modules.values()
    if others or module.slices[0].sources[0].layers is None:
        return None
    return [
        LayerOrigin(one.sources[0].model, number) for one in module.slices for number in range(*_range(one.sources[0]))
    ]


def _part_of(module: Module, part: str, names: list[str]) -> list[str]:
    """Return the names of a module: all of them for the model's only one, else those that begin with its name."""
    if part in ("", "default"):
        return names
    stacks = {stack for stack in stack_lengths(names) if stack.partition(".")[0] == part}
    if part == "shared":
        return [name for name in names if name.partition(".")[0] not in ("encoder", "decoder")]
    if not stacks:
        found = sorted({stack.partition(".")[0] for stack in stack_lengths(names)})
        listed = f"The parts of this model that have layers are called: {', '.join(found)}, and 'shared' is the rest."
        raise module.place.error(f"the model has no part {part!r}.", listed)
    return [name for name in names if name.partition(".")[0] == part]


def _plan_whole(module: Module, names: Names) -> list[PlannedTensor]:
    (part,) = module.slices
    known = [names[source.model] for source in part.sources]
    lengths = [stack_lengths(some) for some in known]
    for source, own in zip(part.sources[1:], lengths[1:], strict=True):
        if own != lengths[0]:
            raise source.place.error(
                f"{source.model} has {_layers(own)} and {part.sources[0].model} {_layers(lengths[0])}.",
                "Merge models of one size, or choose layers of each with slices.",
            )
    planned = []
    for name in sorted(set().union(*known)):
        cut = split_layer(name)
        position = _position(cut.number, lengths[0][cut.stack]) if cut else 0.0
        planned.append(PlannedTensor(name, (name,) * len(part.sources), part, module, position))
    return planned


def _plan_slices(module: Module, names: Names) -> list[PlannedTensor]:
    stacks = {one.model: _only_stack(one, names[one.model]) for part in module.slices for one in part.sources}
    planned: list[PlannedTensor] = []
    for part, before in ((module.slices[0], True), (module.slices[-1], False)):
        loose = {name for one in part.sources for name in names[one.model] if split_layer(name) is None}
        planned += [
            PlannedTensor(name, (name,) * len(part.sources), part, module)
            for name in loose
            if (depth(name, 0) == 0) == before
        ]
    first = module.slices[0].sources[0].model
    layer = 0
    for part in module.slices:
        length = _length(part)
        for offset in range(length):
            position = _position(offset, length)
            planned += _plan_layer(part, module, names, stacks, (layer, offset, position), stacks[first][0])
            layer += 1
    return planned


def _check_length(name: str, module: Module, names: Names) -> None:
    """Refuse to make a part of a model longer or shorter: each kind of model counts the layers of its parts in another way."""
    (before,) = stack_lengths(names[module.slices[0].sources[0].model]).values()
    if sum(map(_length, module.slices)) != before:
        raise module.place.error(
            f"{name} would have {sum(map(_length, module.slices))} layers instead of {before}.",
            "Keep the number of layers in models of several parts.",
        )


def _plan_layer(
    part: Slice,
    module: Module,
    names: Names,
    stacks: Mapping[ModelName, tuple[str, int]],
    place: tuple[int, int, float],
    stack: str,
) -> list[PlannedTensor]:
    """Return the tensors of one layer of the result: its number, its place in the slice, and its position there."""
    layer, offset, position = place
    rests: set[str] = set()
    for source in part.sources:
        prefix = f"{stacks[source.model][0]}.{_range(source)[0] + offset}."
        rests |= {name.removeprefix(prefix) for name in names[source.model] if name.startswith(prefix)}
    return [
        PlannedTensor(
            f"{stack}.{layer}.{rest}",
            tuple(f"{stacks[one.model][0]}.{_range(one)[0] + offset}.{rest}" for one in part.sources),
            part,
            module,
            position,
        )
        for rest in sorted(rests)
    ]


def _only_stack(source: Source, names: Collection[str]) -> tuple[str, int]:
    """Return the stack of layers that a model has, and how many; its range must be in it."""
    lengths = stack_lengths(names)
    if len(lengths) != 1:
        stacks = ", ".join(lengths) or "none"
        raise source.place.error(
            f"{source.model} has {len(lengths)} stacks of layers ({stacks}).",
            "Slices are for models with one; name the parts with 'modules', or merge whole 'models'.",
        )
    ((stack, length),) = lengths.items()
    if _range(source)[1] > length:
        raise source.place.key("layer_range", source.place.line).error(
            f"{source.model} has {length} layers, not {_range(source)[1]}.", f"End the range at {length} or before."
        )
    return stack, length


def _check_complete(configuration: Configuration, names: Names, planned: Collection[PlannedTensor]) -> None:
    """Refuse modules that leave a part of the model out, or name one twice."""
    if set(configuration.modules) & {"", "default"} and len(configuration.modules) == 1:
        return
    there = [tensor.name for tensor in planned]
    first = configuration.models[0]
    outside = {name.partition(".")[0] for name in set(names[first]) - set(there) if split_layer(name) is None}
    if outside or len(there) != len(set(there)):
        missing = f"leave out {', '.join(sorted(outside))}" if outside else "overlap"
        raise configuration.place.key("modules", configuration.place.line).error(
            f"the modules {missing}.", "Name every part of the model once; 'shared' is what has no layers."
        )


def _range(source: Source) -> tuple[int, int]:
    assert source.layers is not None
    return source.layers


def _length(part: Slice) -> int:
    begin, end = _range(part.sources[0])
    return end - begin


def _position(number: int, length: int) -> float:
    return number / (length - 1) if length > 1 else 1.0


def _layers(lengths: Mapping[str, int]) -> str:
    return " and ".join(f"{length} {stack}" for stack, length in lengths.items()) or "no layers"
