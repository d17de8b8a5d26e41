"""Parameters of a merge as a file gives them: a value, values over a slice's layers, or either where names contain a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from skillhub.interop.mergekit.nodes import Entry, Place

Value: TypeAlias = float | bool

_FILTER = {"pattern": "Early versions of mergekit called it so: write 'filter'."}
_LARGEST = 1e6


@dataclass(frozen=True)
class Rule:
    """Values for some tensors.

    Attributes:
        part: a text that their names contain; None for all.
        values: one for every layer, or several, spread over the layers of a slice.
    """

    part: str | None
    values: tuple[Value, ...]

    def applies_to(self, name: str) -> bool:
        """Say whether a tensor of that name is meant."""
        return self.part is None or self.part in name

    def at(self, position: float) -> Value:
        """Return the value at a position in a slice, 0 for its first layer and 1 for its last.

        Numbers are interpolated between evenly spaced points; of switches the one at or before the position counts.
        """
        place = position * (len(self.values) - 1)
        before = min(int(place), len(self.values) - 1)
        first, second = self.values[before], self.values[min(before + 1, len(self.values) - 1)]
        if isinstance(first, bool):
            return first
        share = place - before
        return (1 - share) * first + share * second


@dataclass(frozen=True)
class Setting:
    """A parameter at one level of a file.

    Attributes:
        rules: the first that applies to a tensor counts; where none does, the next level up is asked.
        place: where it stands.
    """

    rules: tuple[Rule, ...]
    place: Place

    def at(self, name: str, position: float) -> Value | None:
        """Return the value for a tensor; None where no rule is for it."""
        return next((rule.at(position) for rule in self.rules if rule.applies_to(name)), None)


Settings: TypeAlias = Mapping[str, Setting]
"""Parameter → its setting, at one level of a file."""


@dataclass(frozen=True)
class Kind:
    """What values a parameter may have.

    Attributes:
        is_switch: true or false.
        is_whole: whole numbers only.
        low: least number.
        high: largest number.
    """

    is_switch: bool = False
    is_whole: bool = False
    low: float = -_LARGEST
    high: float = _LARGEST

    def read(self, entry: Entry) -> Value:
        """Read one value; numbers may be written as texts, as YAML 1.1 takes ``1e-5`` for one.

        Raises:
            UsageError: it is none, or out of range.
        """
        value = entry.value
        if self.is_switch:
            if isinstance(value, bool) or value in (0, 1):
                return bool(value)
            raise entry.place.error(f"{entry.shown} is neither true nor false.", "Write true or false.")
        number = _number(value)
        if number is None or not self.low <= number <= self.high or (self.is_whole and number != int(number)):
            what = "a whole number" if self.is_whole else "a number"
            raise entry.place.error(
                f"{entry.shown} is not {what} from {self.low:g} to {self.high:g}.", "Write one that is."
            )
        return number


def read_setting(entry: Entry, kind: Kind) -> Setting:
    """Read a parameter's value, gradient, or list of rules with filters.

    Raises:
        UsageError: it is none of these, or a value is not of the parameter's kind.
    """
    if isinstance(entry.value, Mapping):
        return Setting((_rule(entry, kind),), entry.place)
    if entry.is_scalar:
        return Setting((Rule(None, (kind.read(entry),)),), entry.place)
    items = entry.items()
    if all(item.is_scalar for item in items):
        return Setting((Rule(None, _values(items, kind)),), entry.place)
    rules: list[Rule] = []
    for item in items:
        if rules and rules[-1].part is None:
            raise item.place.error("no tensor is left for it: the one before has no filter.", "Put that last.")
        rules.append(_rule(item, kind))
    return Setting(tuple(rules), entry.place)


def _rule(entry: Entry, kind: Kind) -> Rule:
    fields = entry.fields(("filter", "value"), refused=_FILTER)
    if "value" not in fields:
        raise entry.place.error("no value is given.", "Write 'value: …', and 'filter: …' where it is for some tensors.")
    value = fields["value"]
    part = fields["filter"].text() if "filter" in fields else None
    items = [value] if value.is_scalar else value.items()
    return Rule(None if part == "*" else part, _values(items, kind))


def _values(items: Sequence[Entry], kind: Kind) -> tuple[Value, ...]:
    return tuple(kind.read(item) for item in items)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number == number else None
