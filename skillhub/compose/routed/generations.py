"""What holds for the forwards inside one block or one call of ``generate``, in one thread (or task) and for one routed model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from skillhub.compose.routed.batches import Identity
from skillhub.compose.routed.bindings import Bound
from skillhub.routing.decisions import Decision


@dataclass(eq=False)
class Generation:
    """What holds for all forwards inside one block or one call of ``generate``.

    Attributes:
        choices: what the caller fixed, or what was decided by the prompt; None where the router decides.
        bound: what was decided, for forwards that have no cache to keep it.
        keeps: whether forwards without a cache take what the first of them decided.
    """

    choices: Any = None
    bound: Bound | None = None
    keeps: bool = False


_generations: ContextVar[Mapping[Identity, Generation]] = ContextVar("skillhub_generations")
_last: ContextVar[WeakKeyDictionary[Identity, Decision]] = ContextVar("skillhub_last_decisions")


@contextmanager
def generation(owner: Identity, choices: Any = None, *, keeps: bool = False) -> Iterator[None]:
    """Let forwards inside the block use fixed choices, or keep one decision for those without a cache.

    Args:
        owner: the routed model's identity; other models' blocks go on to hold.
        choices: anything that :func:`as_decision` reads, or a :class:`Bound`; None leaves the decision to the router (or to the
            block around).
        keeps: whether forwards without a cache take what the first of them decided.
    """
    around = generation_of(owner)
    if choices is None and around is not None:
        choices = around.choices
    token = _generations.set({**_generations.get({}), owner: Generation(choices, keeps=keeps)})
    try:
        yield
    finally:
        with suppress(
            ValueError
        ):  # an async generator that was given up is closed in another context, where nothing was set
            _generations.reset(token)


def generation_of(owner: Identity) -> Generation | None:
    """Return what holds for a routed model's forwards here and now; None outside of blocks."""
    return _generations.get({}).get(owner)


def note_decision(owner: Identity, decision: Decision) -> None:
    """Remember what this thread (or task) decided last for a routed model."""
    decisions = WeakKeyDictionary(_last.get({}))  # of this thread alone, and of models that are still there
    decisions[owner] = decision
    _last.set(decisions)


def last_decision_of(owner: Identity) -> Decision | None:
    """Return what this thread (or task) decided last for a routed model."""
    known = _last.get(None)
    return None if known is None else known.get(owner)
