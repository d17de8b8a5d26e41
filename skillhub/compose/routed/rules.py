"""Rules: how a routed model decides, whichever of its forwards is called."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from skillhub.compose.routed.batches import Batch, Identity, activated, refuse_pickling
from skillhub.compose.routed.bindings import Bound
from skillhub.compose.routed.calls import Call
from skillhub.compose.routed.choices import among, as_decision, merged, narrowed, without
from skillhub.errors import UsageError
from skillhub.routing.decisions import Decision, Prefill, Router, base_alone


@dataclass(eq=False)
class Rules:
    """How a routed model decides; shared by all its entries.

    Attributes:
        owner: the model's identity.
        model: the model.
        router: what decides among all packs.
        labels: of the packs.
        disabled: labels of those that are switched off.
        beside_text: numbers of those that change what reads images or sounds.
    """

    owner: Identity
    model: nn.Module
    router: Router
    labels: tuple[str, ...]
    disabled: frozenset[str] = frozenset()
    beside_text: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self._ends = _ends_of(self.model)
        self._asked = among(self.router, self.labels, self.disabled)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rules:
        """Return the rules of the copied model; the router is shared."""
        made = object.__new__(Rules)
        memo[id(self)] = made
        made.__dict__.update(self.__dict__)
        made.owner, made.model = copy.deepcopy(self.owner, memo), copy.deepcopy(self.model, memo)
        made._ends = [copy.deepcopy(one, memo) for one in self._ends]
        return made

    def __reduce__(self) -> str:
        """Refuse to be pickled, as :func:`skillhub.compose.routed.batches.refuse_pickling`."""
        refuse_pickling()

    def switched(self, disabled: Collection[str]) -> Rules:
        """Return the rules of the model while other packs are switched off.

        Raises:
            UsageError: the router is about a pack that is not there.
        """
        made = object.__new__(Rules)
        made.__dict__.update(self.__dict__)
        made.disabled = frozenset(disabled)
        made._asked = among(self.router, self.labels, made.disabled)
        return made

    def check(self) -> None:
        """Refuse what has become wrong with the model since packs were grafted.

        Raises:
            UsageError: it is in training mode, or its embeddings were replaced.
        """
        if self.model.training:
            raise UsageError(
                "A routed model does not train: its packs are constants.", hint="Call model.eval(), or ungraft first."
            )
        if any(one is not other for one, other in zip(_ends_of(self.model), self._ends, strict=True)):
            raise UsageError(
                "The model's embeddings were replaced or resized since packs were grafted.",
                hint="Ungraft, and load the base model again.",
            )

    @property
    def has_encoder(self) -> bool:
        """Whether the model is an encoder-decoder, which is routed by what its encoder reads."""
        return bool(getattr(getattr(self.model, "config", None), "is_encoder_decoder", False))

    def batch(self, bound: Bound) -> Batch:
        """Return a batch as it was decided; what follows from a decision is worked out once, however many forwards it is for.

        Raises:
            UsageError: a row has a pack that left since, or that is switched off.
        """
        known = bound.memo.get(self.labels)
        if known is None:
            decision = as_decision(narrowed(bound.decision), self.labels)
            known = Batch(self.owner, decision, tuple(self.labels.index(name) for name in decision.packs))
            bound.memo[self.labels] = known
            _ = known.single  # worked out here, and not by every copy
        self._refuse_disabled(known.decision, "this batch")
        return copy.copy(known)

    def check_media(self, batch: Batch, call: Call) -> None:
        """Refuse rows of several packs where nothing tells which image belongs to which row.

        Raises:
            UsageError: so it is, and a pack changes what reads images or sounds.
        """
        if batch.single is not None or not self.beside_text.intersection(batch.packs):
            return
        if call.has_uneven_media(getattr(self.model, "config", None)):
            raise UsageError(
                "The rows of this batch have different numbers of images or sounds, and a pack changes what reads those.",
                hint="Give batches whose rows have equally many, or the same pack.",
            )

    def read(self, choices: Any) -> Decision:
        """Read what a caller fixes, as :func:`skillhub.compose.routed.choices.as_decision`.

        Raises:
            UsageError: it is no choice of this model's packs, or of one that is switched off.
        """
        decision = as_decision(choices, self.labels)
        self._refuse_disabled(narrowed(decision), "the choices")
        return decision

    def _refuse_disabled(self, decision: Decision, where: str) -> None:
        off = [name for name in decision.packs if name in self.disabled] if self.disabled else []
        if off:
            raise UsageError(
                f"{off[0]} is switched off, and rows of {where} have it.",
                hint="Switch it on (skillhub.enable(model)), choose another (pack_choices=[…]), or begin with a new cache.",
            )

    def decide(self, prefill: Prefill) -> Decision:
        """Ask the router; what it chooses of packs that are switched off is the base.

        Raises:
            UsageError: it does not answer with a choice for each row.
        """
        if self._asked is None:
            return Decision(self.labels, (None,) * prefill.rows)
        with base_alone(), activated(None):
            answer = self._asked.route(prefill)
        decision = without(as_decision(answer, self.labels), self.disabled)
        return Bound(self.owner, decision).fitted(prefill.rows, "The router's decision").decision

    def decide_rows(self, prefill: Prefill) -> Bound:
        """Ask the router for the rows that have any token; rows of nothing but padding stay undecided, and count as the base."""
        mask = prefill.attention_mask
        empty = [] if mask is None else [row for row, some in enumerate((mask != 0).any(-1).tolist()) if not some]
        if not empty:
            return Bound(self.owner, self.decide(prefill))
        there = [row for row in range(prefill.rows) if row not in empty]
        nothing = Decision((), (None,) * prefill.rows)
        found = self.decide(prefill.select(there)) if there else Decision(self.labels, ())
        return Bound(self.owner, merged(nothing, found, there), frozenset(empty))

    def complete(self, bound: Bound, prefill: Prefill) -> Bound:
        """Decide rows that were undecided, where this forward brings tokens for them."""
        mask = prefill.attention_mask
        rows = [row for row in sorted(bound.undecided) if mask is None or bool(mask[row].any())]
        if not rows:
            return bound
        found = self.decide(prefill.select(rows))
        return replace(bound, decision=merged(bound.decision, found, rows), undecided=bound.undecided - set(rows))


def _ends_of(model: Any) -> list[Any]:
    """Return the modules that become others when a vocabulary is resized."""
    found = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        try:
            found.append(getattr(model, name)())
        except (AttributeError, NotImplementedError):  # models without token embeddings
            found.append(None)
    return found
