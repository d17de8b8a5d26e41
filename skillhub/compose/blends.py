"""mergekit's merge methods in terms of ours: which method, deltas, weights, densities and options give what mergekit gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from skillhub.compose.layerplans import PlannedTensor
from skillhub.errors import UsageError
from skillhub.interop.mergekit.amounts import Settings, Value
from skillhub.interop.mergekit.configurations import Configuration
from skillhub.interop.mergekit.rules import Parameter


@dataclass(frozen=True)
class Blend:
    """How one tensor is merged.

    Attributes:
        method: name of one of our merge methods.
        members: indices of the sources that are merged, in their slice.
        base: index of the source that differences are taken to; None merges the members' own values.
        weights: one per member.
        densities: one per member.
        options: of the method.
    """

    method: str
    members: tuple[int, ...]
    base: int | None = None
    weights: tuple[float, ...] = ()
    densities: tuple[float, ...] = ()
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def copies(self) -> int | None:
        """Index of the only source where the result is just its tensor."""
        plain = self.method == "linear" and self.base is None and self.weights == (1.0,)
        return self.members[0] if plain else None


@dataclass(frozen=True)
class Told:
    """What a file tells a method about one tensor.

    Attributes:
        configuration: the document.
        tensor: the tensor.
        name: as filters see it.
        inputs: the names of its sources' tensors, as filters see them.
    """

    configuration: Configuration
    tensor: PlannedTensor
    name: str
    inputs: Sequence[str]

    @property
    def base(self) -> int | None:
        """Index of the base among the sources."""
        base = self.tensor.part.base
        models = [source.model for source in self.tensor.part.sources]
        return models.index(base) if base in models else None

    @property
    def tuned(self) -> tuple[int, ...]:
        """Indices of all sources but the base."""
        return tuple(index for index in self.all if index != self.base)

    @property
    def all(self) -> tuple[int, ...]:
        """Indices of all sources."""
        return tuple(range(len(self.tensor.part.sources)))

    def number(self, name: str, source: int | None = None) -> float:
        """Return a parameter's value: for the tensor, or for one of its sources."""
        return float(self._value(name, source))

    def is_on(self, name: str) -> bool:
        """Return a switch of the tensor."""
        return bool(self._value(name, None))

    def numbers(self, name: str, sources: Sequence[int]) -> tuple[float, ...]:
        """Return a parameter's value for each of some sources."""
        return tuple(self.number(name, source) for source in sources)

    def _value(self, name: str, source: int | None) -> Value:
        """Ask the levels of the file, from the source up to the document."""
        part, module = self.tensor.part, self.tensor.module
        levels: list[Settings] = [part.settings, module.settings, self.configuration.settings]
        asked = self.name
        if source is not None:
            levels.insert(0, part.sources[source].settings)
            asked = self.inputs[source]
        for settings in levels:
            value = settings[name].at(asked, self.tensor.position) if name in settings else None
            if value is not None:
                return value
        parameter: Parameter = self.configuration.rules.parameters[name]
        if parameter.default is not None:
            return parameter.default
        place = part.place if source is None else part.sources[source].place
        raise place.error(f"nothing says what {name} is for {asked}.", f"Add '{name}: …' to the parameters here.")


def blend(told: Told) -> Blend:
    """Return how a tensor is merged.

    Raises:
        UsageError: the file leaves a needed parameter open, or its values make no sense together.
    """
    if told.configuration.rules.base == "required" and not told.tuned:
        assert told.base is not None
        return Blend("linear", (told.base,), None, (1.0,))
    return _BLENDS[told.configuration.method](told)


def _linear(told: Told) -> Blend:
    weights = told.numbers("weight", told.all)
    total = sum(weights)
    if not told.is_on("normalize"):
        return Blend("linear", told.all, None, weights)
    if total == 0:
        raise UsageError(
            f"The weights for {told.name} add up to 0, by which they cannot be divided.",
            hint="Change them, or write 'normalize: false' under parameters.",
        )
    return Blend("linear", told.all, None, tuple(weight / total for weight in weights))


def _passthrough(told: Told) -> Blend:
    return Blend("linear", told.all, None, told.numbers("scale", told.all))


def _task_arithmetic(told: Told) -> Blend:
    options = {"normalize": told.number("normalize"), "lambda": told.number("lambda")}
    return Blend("linear", told.tuned, told.base, told.numbers("weight", told.tuned), options=options)


def _ties(told: Told) -> Blend:
    return _thinned(told, elects=True)


def _thinned(told: Told, *, elects: bool, **more: float) -> Blend:
    """Return the blend of a method that drops elements of every difference, then adds them up or elects signs.

    Where mergekit does not normalize it adds up what has the elected sign, without dividing by how many there are.
    """
    options = {
        "normalize": told.number("normalize"),
        "lambda": told.number("lambda"),
        "keep_norm": told.number("rescale"),
        **({"mean": 0.0} if elects else {}),
        **more,
    }
    densities = told.numbers("density", told.tuned)
    weights = told.numbers("weight", told.tuned)
    return Blend(told.configuration.method, told.tuned, told.base, weights, densities, options)


_BLENDS: Mapping[str, Callable[[Told], Blend]] = {
    "linear": _linear,
    "passthrough": _passthrough,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
}
