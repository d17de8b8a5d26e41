"""Numbers that may differ from tensor to tensor: a weight, a density, an option of a merge method.

A user gives one number; several, which are spread over the model's layers (a *gradient*); or either for names that match a
pattern: ``{"mlp": 0.5, "self_attn": [0, 1], "": 0.2}``. Patterns are regular expressions that are searched in canonical names, the
first that matches counts, and the empty one matches every name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

from skillhub.errors import UsageError

Gradient: TypeAlias = float | Sequence[float]
Amount: TypeAlias = Gradient | Mapping[str, Gradient]
"""What a user may give: a number, a gradient, or pattern → either."""

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d{1,9})\.")
_LARGEST = 1e30
_BEFORE_LAYERS = re.compile(r"embed(?!_out)|(?:^|\.)(?:wte|wpe|shared)\.")


@dataclass(frozen=True)
class Schedule:
    """A number for every tensor.

    Attributes:
        rules: (pattern, values) in the order in which they are tried; one value is for all layers, several are a gradient.
    """

    rules: tuple[tuple[str, tuple[float, ...]], ...]

    def at(self, name: str, layers: int) -> float | None:
        """Return the number for a tensor; None where no pattern matches its name.

        Args:
            name: canonical name.
            layers: how many layers the model has.
        """
        for pattern, values in self.rules:
            if re.search(pattern, name):
                return _interpolated(values, depth(name, layers))
        return None

    def idle(self, names: Collection[str]) -> list[str]:
        """Return the patterns that match none of some names."""
        return [pattern for pattern, _ in self.rules if not any(re.search(pattern, name) for name in names)]

    @property
    def values(self) -> list[float]:
        """Every number that is written in it."""
        return [value for _, values in self.rules for value in values]

    def __str__(self) -> str:
        texts = [f"{pattern}: {_text(values)}" if pattern else _text(values) for pattern, values in self.rules]
        return "; ".join(texts)

    def __format__(self, specification: str) -> str:
        return str(self)


def amount_at(amount: float | Schedule, name: str, layers: int, default: float) -> float:
    """Return what a number or schedule says of a tensor, ``default`` where it says nothing."""
    if not isinstance(amount, Schedule):
        return amount
    found = amount.at(name, layers)
    return default if found is None else found


def amounts_in(amount: float | Schedule) -> list[float]:
    """Return every number in a number or schedule."""
    return amount.values if isinstance(amount, Schedule) else [amount]


def read_amount(what: str, value: Any) -> float | Schedule:
    """Read what a user gave for a weight, a density or an option.

    Args:
        what: how it is called, for the error.
        value: an :data:`Amount` or a schedule.

    Raises:
        UsageError: it is none, or a pattern is not a regular expression.
    """
    if isinstance(value, Schedule):
        return value
    if _is_number(value):
        return float(value)
    rules = value if isinstance(value, Mapping) else {"": value}
    read = tuple((_pattern(what, pattern), _numbers(what, numbers)) for pattern, numbers in rules.items())
    if not read:
        raise _wrong(what, value)
    return Schedule(read)


def layer_number(name: str) -> int | None:
    """Return the number of the layer that a canonical name lies in, from 0; None outside of layers."""
    return cut_layer(name)[0]


def cut_layer(name: str) -> tuple[int | None, str]:
    """Return the number of the layer that a canonical name lies in, and what stands after it; None and the name outside of layers."""
    found = _LAYER.search(name)
    return (int(found.group(1)), name[found.end() :]) if found else (None, name)


def count_layers(names: Iterable[str]) -> int:
    """Return how many layers the tensors of these canonical names lie in."""
    numbers = [number for number in map(layer_number, names) if number is not None]
    return max(numbers, default=-1) + 1


def depth(name: str, layers: int) -> float:
    """Return where in a model a tensor lies: 0 in the first layer and before the layers, 1 in the last and after them."""
    number = layer_number(name)
    if number is None:
        return 0.0 if _BEFORE_LAYERS.search(name) else 1.0
    return number / (layers - 1) if layers > 1 else 1.0


def _interpolated(values: tuple[float, ...], position: float) -> float:
    """Return the value of a piecewise linear curve through evenly spaced ``values`` at ``position`` (0 to 1)."""
    if len(values) == 1:
        return values[0]
    place = min(max(position, 0.0), 1.0) * (len(values) - 1)
    before = min(int(place), len(values) - 2)
    return values[before] + (values[before + 1] - values[before]) * (place - before)


def _pattern(what: str, pattern: Any) -> str:
    try:
        re.compile(pattern)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"{pattern!r}, in {what}, is not a pattern: {error}.", hint="Write a regular expression, such as 'mlp'."
        ) from error
    return str(pattern)


def _numbers(what: str, value: Any) -> tuple[float, ...]:
    values = list(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) else [value]
    if not values or not all(map(_is_number, values)):
        raise _wrong(what, value)
    return tuple(map(float, values))


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and bool(-_LARGEST <= value <= _LARGEST)  # not so for NaN


def _wrong(what: str, value: Any) -> UsageError:
    return UsageError(
        f"{value!r} is no number for {what}.",
        hint="Give a number, a list of numbers over the layers, or a mapping from patterns of names to either.",
    )


def _text(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"[{', '.join(format(value, 'g') for value in values)}]"
