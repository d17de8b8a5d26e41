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


def _thinned(told: Told) -> Blend:
    """Return the blend of a method that drops elements of every difference, then adds them up or elects signs.

    What mergekit calls ``rescale`` keeps the sum of magnitudes. Where it does not normalize it adds up what has the elected sign,
    without dividing by how many there are.
    """
    method = told.configuration.method
    options = {
        "normalize": told.number("normalize"),
        "lambda": told.number("lambda"),
        "keep_norm": told.number("rescale"),
    }
    if method in _ELECTING:
        options["mean"] = 0.0
    if method in _DRAWING:
        options["rescale"] = 0.0
    for name in ("gamma", "epsilon"):
        if name in told.configuration.rules.parameters:
            options[name] = _one_for_all(told, name)
    weights, densities = told.numbers("weight", told.tuned), told.numbers("density", told.tuned)
    for density in densities if "epsilon" in options else ():
        if 0 < density < 1 and not options["epsilon"] < min(density, 1 - density):
            raise told.tensor.part.place.error(
                f"density {density:g} ± epsilon {options['epsilon']:g} is not within 0 and 1, for {told.name}.",
                "Give a smaller epsilon, or densities farther from 0 and 1.",
            )
    return Blend(method, told.tuned, told.base, weights, densities, options)


def _one_for_all(told: Told, name: str) -> float:
    """Return a parameter of single models that has to be the same for all."""
    values = set(told.numbers(name, told.tuned))
    if len(values) > 1:
        raise told.tensor.part.place.error(
            f"{name} differs between the models ({', '.join(f'{value:g}' for value in sorted(values))}).",
            "Give all of them the same one: that they differ is not supported.",
        )
    return values.pop()


def _optioned(method: str, *names: str) -> Callable[[Told], Blend]:
    """Return the blend of a method that has no weights and is told numbers of the same names."""

    def blended(told: Told) -> Blend:
        return Blend(method, told.tuned, told.base, options={name: told.number(name) for name in names})

    return blended


def _nuslerp(told: Told) -> Blend:
    vectors = "" if told.is_on("nuslerp_flatten") else "per_column" if told.is_on("nuslerp_row_wise") else "per_row"
    options = {vectors: 1.0} if vectors else {}
    return Blend("nuslerp", told.tuned, told.base, told.numbers("weight", told.tuned), options=options)


def _multislerp(told: Told) -> Blend:
    if len(told.tuned) == 1:
        return Blend("linear", told.tuned, None, (1.0,))
    options = {"normalize": told.number("normalize_weights")}
    return Blend("multislerp", told.tuned, told.base, told.numbers("weight", told.tuned), options=options)


def _karcher(told: Told) -> Blend:
    options = {"max_iter": round(told.number("max_iter")), "tol": told.number("tol")}
    return Blend("karcher", told.all, None, options=options)


_ELECTING = frozenset({"ties", "dare_ties", "della", "breadcrumbs_ties"})
_DRAWING = frozenset({"dare_linear", "dare_ties", "della", "della_linear"})
_THINNING = ("ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties")

_BLENDS: Mapping[str, Callable[[Told], Blend]] = {
    "linear": _linear,
    "passthrough": _passthrough,
    "task_arithmetic": _task_arithmetic,
    **dict.fromkeys(_THINNING, _thinned),
    "sce": _optioned("sce", "select_topk"),
    "model_stock": _optioned("model_stock", "filter_wise"),
    "slerp": _optioned("slerp", "t"),
    "nuslerp": _nuslerp,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "nearswap": _optioned("nearswap", "t"),
    "arcee_fusion": _optioned("arcee_fusion"),
    "ram": _optioned("ram", "epsilon"),
    "ramplus_tl": _optioned("ram_plus", "r", "alpha", "epsilon"),
}
