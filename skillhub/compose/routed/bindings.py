"""Where a decision is kept between the forwards of one generation: with the cache, or with an encoder's outputs.

A cache that carries a decision gets a class that is its own in all but this: what reorders, repeats or selects rows of the cache does
the same to the decision, and resetting the cache drops it. Cropping changes positions, not rows, so the decision stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import torch

from skillhub.errors import UsageError
from skillhub.routing.decisions import Decision

_ATTRIBUTE = "_skillhub_decision"


@dataclass(frozen=True, eq=False)
class Bound:
    """A decision as it is kept.

    Attributes:
        owner: the identity of the routed model that decided.
        decision: one row for each row of what carries it.
        undecided: rows that had nothing but padding so far, which count as the base until they have more.
        memo: what was worked out from the decision.
    """

    owner: object
    decision: Decision
    undecided: frozenset[int] = frozenset()
    memo: dict[Any, Any] = field(default_factory=dict, init=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Bound:
        """Return itself: the copy of a cache belongs to the same model."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled with a cache: in another process nobody is its owner, but :func:`any_decision` tells it."""
        return {**self.__dict__, "memo": {}}

    def select(self, rows: Sequence[int]) -> Bound:
        """Return what is kept of some rows, in the given order."""
        places = frozenset(place for place, row in enumerate(rows) if row in self.undecided)
        return replace(self, decision=self.decision.select(rows), undecided=places)

    def fitted(self, rows: int, what: str) -> Bound:
        """Return this for ``rows`` rows; beams and several answers to one prompt stand one after another.

        Raises:
            UsageError: the rows are no multiple of those decided.
        """
        decided = len(self.decision.choices)
        if rows == decided:
            return self
        if not decided or rows % decided:
            raise UsageError(
                f"{what} is for {decided} rows, and this batch has {rows}.",
                hint="Give one choice per row, or as many rows for each choice.",
            )
        return self.select([row for row in range(decided) for _ in range(rows // decided)])


def bind(carrier: Any, bound: Bound) -> None:
    """Let a cache, or the outputs of an encoder, carry a decision."""
    if is_cache(carrier):
        if _ATTRIBUTE not in carrier.__dict__:
            carrier.__class__ = _carrying(type(carrier))
        carrier.__dict__[_ATTRIBUTE] = bound
    else:
        object.__setattr__(carrier, _ATTRIBUTE, bound)


def bound_to(carrier: Any, owner: object) -> Bound | None:
    """Return what a routed model decided for a cache or an encoder's outputs; None where it did not."""
    found = getattr(carrier, _ATTRIBUTE, None)
    return found if isinstance(found, Bound) and found.owner is owner else None


def any_decision(carrier: Any) -> Decision | None:
    """Return the decision that a cache or an encoder's outputs carry, whichever model made it."""
    found = getattr(carrier, _ATTRIBUTE, None)
    return found.decision if isinstance(found, Bound) else None


def is_cache(value: Any) -> bool:
    """Say whether a value is a cache of transformers."""
    from transformers.cache_utils import Cache

    return isinstance(value, Cache)


def _reordered(carrier: Any, beam_idx: torch.Tensor) -> None:
    _change(carrier, torch.as_tensor(beam_idx).tolist())  # at once: a GPU is waited for every time


def _selected(carrier: Any, indices: torch.Tensor) -> None:
    index = torch.as_tensor(indices)
    if index.dtype == torch.bool:
        index = index.nonzero()[:, 0]
    _change(carrier, index.tolist())


def _repeated(carrier: Any, repeats: int) -> None:
    if _ATTRIBUTE in carrier.__dict__:
        rows = range(len(carrier.__dict__[_ATTRIBUTE].decision.choices))
        _change(carrier, [row for row in rows for _ in range(repeats)])


def _reset(carrier: Any) -> None:
    carrier.__dict__.pop(_ATTRIBUTE, None)


def _change(carrier: Any, rows: Sequence[int]) -> None:
    bound = carrier.__dict__.get(_ATTRIBUTE)
    if bound is not None:
        carrier.__dict__[_ATTRIBUTE] = bound.select(rows)


_FOLLOWED: dict[str, Callable[..., None]] = {
    "reorder_cache": _reordered,
    "batch_select_indices": _selected,
    "batch_repeat_interleave": _repeated,
    "reset": _reset,
}
"""Method of a cache → what it does to a decision."""


_carriers: dict[Any, Any] = {}


def _carrying(kind: Any) -> Any:
    """Return a class of caches whose decisions follow their rows; for each class the same."""
    if kind in _carriers.values():
        return kind
    return _carriers.get(kind) or _carriers.setdefault(kind, _subclass(kind))  # of two threads both get the first one's


def _remade(kind: Any) -> Any:
    """Return what a copied or unpickled cache with a decision is made of, before it gets its attributes."""
    return object.__new__(_carrying(kind))


def _subclass(kind: Any) -> Any:

    def followed(name: str, follow: Callable[..., None]) -> Callable[..., Any]:
        method = getattr(kind, name)

        @wraps(method)
        def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = method(self, *args, **kwargs)
            follow(self, *args, **kwargs)
            return result

        return changed

    methods: dict[str, Any] = {
        name: followed(name, follow) for name, follow in _FOLLOWED.items() if hasattr(kind, name)
    }

    def reduced(self: Any, protocol: Any) -> Any:  # pickle does not find a class by another's name
        return (_remade, (kind,), dict(self.__dict__))

    names = {
        "__reduce_ex__": reduced,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind,), {**methods, **names})
