"""What callers may say about choices, read into decisions: labels, decisions, and whatever may stand for a router."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from skillhub.compose.merging import AnyDelta, Contribution
from skillhub.errors import UsageError
from skillhub.names import is_bare_name, parse_pack_name
from skillhub.progress import Notice
from skillhub.routing.decisions import Decision, Prefill, Router, SelectiveRouter

_EVERY_KIND = "Give 'auto', a router, a function from Prefill to choices, or one choice per row."


@dataclass(frozen=True, eq=False)
class FixedLabels:
    """Decides by labels that a caller gave.

    Attributes:
        labels: one per row, or for some rows by their number; the base for all others.
    """

    labels: Any

    def route(self, prefill: Prefill) -> Any:
        """Return the labels."""
        if isinstance(self.labels, Mapping):
            return [self.labels.get(row) for row in range(prefill.rows)]
        return self.labels


@dataclass(frozen=True, eq=False)
class Function:
    """Decides as a function of the caller does."""

    function: Callable[[Prefill], Any]

    def route(self, prefill: Prefill) -> Any:
        """Call the function."""
        return self.function(prefill)


def pack_labels(contributions: Sequence[Contribution]) -> tuple[str, ...]:
    """Return what each pack is called in decisions: its name, and where several have the same also its version or digest."""
    names = [str(one.item.pack.name) for one in contributions]
    versioned = [str(one.item.pack) for one in contributions]
    labels = []
    for one, name, longer in zip(contributions, names, versioned, strict=True):
        if names.count(name) == 1:
            labels.append(name)
        elif versioned.count(longer) == 1:
            labels.append(longer)
        else:
            labels.append(f"{longer} {one.item.pack.digest[:12]}")
    return tuple(labels)


def as_router(source: Any, deltas: Mapping[str, AnyDelta], model: nn.Module, notice: Notice | None = None) -> Router:
    """Return what decides.

    Args:
        source: ``auto``, a router, a function from :class:`Prefill` to anything that :func:`as_decision` reads, a list of labels (one
            per row) or a mapping (number of a row → label).
        deltas: label of each pack → its delta, for ``auto``.
        model: the base model, for ``auto``.
        notice: told how ``auto`` decides where packs have no cards; by default that is logged.

    Raises:
        UsageError: it is nothing of that kind, or packs cannot be routed automatically.
    """
    if isinstance(source, str):
        if source != "auto":
            raise UsageError(f"There is no router {source!r}.", hint=_EVERY_KIND)
        from skillhub.routing.choosing import find_router

        return find_router(deltas, model, notice=notice)
    if hasattr(source, "route"):
        return source  # type: ignore[no-any-return]
    if callable(source):
        return Function(source)
    if isinstance(source, (Mapping, list, tuple)):
        return FixedLabels(dict(source) if isinstance(source, Mapping) else tuple(source))
    raise UsageError(f"{source!r} is no router.", hint=_EVERY_KIND)


def as_decision(value: Any, labels: Sequence[str]) -> Decision:
    """Read choices: a decision, or a list of a pack's name or None for each row.

    Args:
        value: the choices; a single label is for a batch of one row.
        labels: of the packs that are grafted.

    Returns:
        A decision whose packs are among ``labels``.

    Raises:
        UsageError: a name is no grafted pack's or means several, or the decision's parts do not go together.
    """
    if isinstance(value, Decision):
        _check(value)
        mixture = None if value.mixture is None else value.mixture.detach().clone()  # the caller may change theirs
        packs = tuple(_label(name, labels) for name in value.packs)
        if len(set(packs)) < len(packs):
            raise UsageError(f"A decision names a pack twice: {', '.join(value.packs)}.", hint="Name each once.")
        return replace(value, packs=packs, mixture=mixture)
    if value is None or isinstance(value, str):
        value = [value]
    try:
        chosen = list(value)
    except TypeError as error:
        raise UsageError(f"{value!r} are no choices.", hint="Give a pack's name or None for each row.") from error
    return Decision(tuple(labels), tuple(None if one is None else _index(one, labels) for one in chosen))


def _index(choice: Any, labels: Sequence[str]) -> int:
    if not isinstance(choice, str):
        raise UsageError(f"{choice!r} is no choice.", hint=f"Use one of: {', '.join(labels)}; or None for the base.")
    return list(labels).index(_label(choice, labels))


def _label(name: str, labels: Sequence[str]) -> str:
    """Return the label that a name means: the label itself, or a pack's name with or without its owner."""
    if name in labels:
        return name
    wanted = parse_pack_name(name) if all(map(is_bare_name, name.split("/"))) and name.count("/") < 2 else None
    of_packs = {label: parse_pack_name(label.split(" ")[0]) for label in labels}
    found = [label for label, pack in of_packs.items() if wanted is not None and wanted.matches(pack)]
    if len(found) != 1:
        what = f"means several packs here: {', '.join(found)}" if found else "is not routed on this model"
        raise UsageError(f"The choice {name!r} {what}.", hint=f"Use one of: {', '.join(labels)}; or None for the base.")
    return found[0]


def _check(decision: Decision) -> None:
    rows, packs = len(decision.choices), len(decision.packs)
    wrong = [one for one in decision.choices if one is not None and not (type(one) is int and 0 <= one < packs)]
    if wrong:
        raise UsageError(f"A decision chooses pack {wrong[0]!r} of {packs}.", hint="Count its packs from 0.")
    mixture = decision.mixture
    if mixture is not None and not isinstance(mixture, torch.Tensor):
        raise UsageError(f"{mixture!r} is no mixture.", hint="Give a tensor with a weight for every row and pack.")
    if mixture is not None and (tuple(mixture.shape) != (rows, packs) or not bool(torch.isfinite(mixture).all())):
        raise UsageError(
            f"A mixture of {list(mixture.shape)} does not fit {rows} rows and {packs} packs.",
            hint="Give a finite weight for every row and pack.",
        )


def merged(decision: Decision, found: Decision, rows: list[int]) -> Decision:
    """Return a decision with some of its rows replaced by those of another; they may be about different packs."""
    packs = (*found.packs, *(name for name in decision.packs if name not in found.packs))
    columns = [packs.index(name) for name in decision.packs]
    choices = [None if choice is None else columns[choice] for choice in decision.choices]
    for row, choice in zip(rows, found.choices, strict=True):
        choices[row] = choice

    def placed(mine: torch.Tensor | None, theirs: torch.Tensor | None) -> torch.Tensor | None:
        if mine is None and theirs is None:
            return None
        table = torch.zeros(len(choices), len(packs))
        if mine is not None:
            table[:, columns] = mine.to(table)
        table[rows] = 0
        if theirs is not None:
            table[rows, : len(found.packs)] = theirs.to(table)
        return table

    return Decision(
        packs, tuple(choices), placed(decision.scores, found.scores), placed(decision.mixture, found.mixture)
    )


def narrowed(decision: Decision) -> Decision:
    """Return a decision about those packs alone that some row has."""
    used = {choice for choice in decision.choices if choice is not None}
    if decision.mixture is not None:
        used.update(decision.mixture.any(0).nonzero().flatten().tolist())
    kept = sorted(used)
    return Decision(
        tuple(decision.packs[place] for place in kept),
        tuple(None if choice is None else kept.index(choice) for choice in decision.choices),
        None if decision.scores is None else decision.scores[:, kept],
        None if decision.mixture is None else decision.mixture[:, kept],
    )


def without(decision: Decision, disabled: Collection[str]) -> Decision:
    """Return a decision in which packs that are switched off count for nothing: the base takes their place."""
    off = [place for place, name in enumerate(decision.packs) if name in disabled]
    if not off:
        return decision
    choices, mixture = [None if choice in off else choice for choice in decision.choices], decision.mixture
    if mixture is not None:
        mixture = mixture.clone()
        mixture[:, off] = 0
        choices = [
            best if row[best] > 0 else None for row, best in zip(mixture, mixture.argmax(1).tolist(), strict=True)
        ]
    return replace(decision, choices=tuple(choices), mixture=mixture)


def among(router: Router, labels: Sequence[str], disabled: Collection[str]) -> Router | None:
    """Return what decides while some packs are switched off; None where nothing is left to choose.

    A router that can leave packs out chooses among the others: a row gets the next best that fits it. Any other is asked as ever,
    and what it chooses of packs that are off is the base.

    Args:
        router: what decides among all packs.
        labels: of all packs.
        disabled: of those that are off.

    Raises:
        UsageError: the router is about a pack that is not there.
    """
    if not disabled:
        return router
    if not isinstance(router, SelectiveRouter):
        return router if len(disabled) < len(labels) else None
    rest = [name for name in router.packs if _label(name, labels) not in disabled]
    return router.among(rest) if rest else None
