"""Entries: the modules that callers call. Each forward that enters a routed model is decided here, or finds what was decided."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from skillhub.compose.routed.batches import Batch, Identity, activated, active_batch
from skillhub.compose.routed.bindings import Bound, bind, bound_to
from skillhub.compose.routed.calls import Call
from skillhub.compose.routed.choices import as_decision, merged
from skillhub.errors import UsageError
from skillhub.routing.decisions import Decision, Prefill, Router, base_alone, is_base_alone

CHOICES = "pack_choices"
"""Argument of a routed model's forward and ``generate``: the choices that a caller fixes for this call."""

_PROMPT_HIDING = ("prefill_chunk_size", "assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
"""Options of ``generate`` by which its first forward does not get the prompt as it is."""

_PAGED = ("cu_seq_lens_q", "block_table", "block_tables")
"""Arguments of forwards that hold several sequences in one row."""


@dataclass(eq=False)
class Generation:
    """What holds for all forwards inside one block or one call of ``generate``.

    Attributes:
        owner: the routed model's identity.
        choices: what the caller fixed; None where the router decides.
        bound: what was decided, for forwards that have no cache to keep it.
    """

    owner: Identity
    choices: Any = None
    bound: Bound | None = None
    keeps: bool = False


_generation: ContextVar[Generation | None] = ContextVar("skillhub_generation", default=None)
_last: ContextVar[tuple[Identity, Decision] | None] = ContextVar("skillhub_last_decision", default=None)


@contextmanager
def generation(owner: Identity, choices: Any = None, *, keeps: bool = False) -> Iterator[None]:
    """Let forwards inside the block use fixed choices, or keep one decision for those without a cache.

    Args:
        owner: the routed model's identity.
        choices: anything that :func:`as_decision` reads; None leaves the decision to the router (or to the block around).
        keeps: whether forwards without a cache take what the first of them decided.
    """
    around = _generation.get()
    if choices is None and around is not None and around.owner is owner:
        choices = around.choices
    token = _generation.set(Generation(owner, choices, keeps=keeps))
    try:
        yield
    finally:
        _generation.reset(token)


def last_decision_of(owner: Identity) -> Decision | None:
    """Return what this thread (or task) decided last for a routed model."""
    found = _last.get()
    return found[1] if found is not None and found[0] is owner else None


@dataclass(eq=False)
class Rules:
    """How a routed model decides; shared by all its entries.

    Attributes:
        owner: the model's identity.
        model: the model.
        router: what decides.
        labels: of the packs.
    """

    owner: Identity
    model: nn.Module
    router: Router
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        self._ends = _ends_of(self.model)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rules:
        """Return the rules of the copied model; the router is shared."""
        made = copy.copy(self)
        memo[id(self)] = made
        made.owner, made.model = copy.deepcopy(self.owner, memo), copy.deepcopy(self.model, memo)
        made._ends = [copy.deepcopy(one, memo) for one in self._ends]
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
        """Return a batch as it was decided; what follows from a decision is worked out once, however many forwards it is for."""
        known = bound.memo.get(self.labels)
        if known is None:
            decision = as_decision(bound.decision, self.labels)
            known = Batch(self.owner, decision, tuple(self.labels.index(name) for name in decision.packs))
            bound.memo[self.labels] = known
            _ = known.single  # worked out here, and not by every copy
        return copy.copy(known)

    def decide(self, prefill: Prefill) -> Decision:
        """Ask the router.

        Raises:
            UsageError: it does not answer with a choice for each row.
        """
        with base_alone(), activated(None):
            answer = self.router.route(prefill)
        decision = as_decision(answer, self.labels)
        return Bound(self.owner, decision).fitted(prefill.rows, "The router's decision").decision

    def decide_rows(self, prefill: Prefill) -> Bound:
        """Ask the router for the rows that have any token; rows of nothing but padding stay undecided, and count as the base."""
        mask = prefill.attention_mask
        empty = [] if mask is None else [row for row, some in enumerate((mask != 0).any(-1).tolist()) if not some]
        if not empty:
            return Bound(self.owner, self.decide(prefill))
        there = [row for row in range(prefill.rows) if row not in empty]
        nothing = Decision(self.labels, (None,) * prefill.rows)
        if not there:
            return Bound(self.owner, nothing, frozenset(empty))
        found = as_decision(self.decide(prefill.select(there)), self.labels)
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


@dataclass(eq=False)
class Entry:
    """Takes the place of the ``forward`` of a module that callers call.

    Attributes:
        rules: how the model decides.
        module: the module.
        encodes: whether its outputs are what a decoder reads.
    """

    rules: Rules
    module: nn.Module
    encodes: bool = False

    def __post_init__(self) -> None:
        self._adopt()

    def _adopt(self) -> None:
        self.original = type(self.module).forward.__get__(self.module)
        signature = inspect.signature(self.original)
        self.names = list(signature.parameters)
        # transformers reads which arguments a forward takes: to hand them on, and to refuse others
        choices = inspect.Parameter(CHOICES, inspect.Parameter.KEYWORD_ONLY, default=None)
        rest = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        last = [one for one in signature.parameters.values() if one.kind is inspect.Parameter.VAR_KEYWORD]
        self.__signature__ = signature.replace(parameters=[*rest, choices, *last])

    def __deepcopy__(self, memo: dict[int, Any]) -> Entry:
        """Return an entry of the copied module."""
        made = copy.copy(self)
        memo[id(self)] = made
        made.rules, made.module = copy.deepcopy(self.rules, memo), copy.deepcopy(self.module, memo)
        made._adopt()
        return made

    def install(self) -> None:
        """Put the entry in its place."""
        self.module.__dict__["forward"] = self

    def remove(self) -> None:
        """Give the module its own forward back."""
        self.module.__dict__.pop("forward", None)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Decide, or find what was decided, and compute; a compiled model runs uncompiled while packs are routed on it."""
        rules = self.rules
        choices = kwargs.pop(CHOICES, None)
        if is_base_alone():
            with activated(None):
                return self.original(*args, **kwargs)
        if active_batch(rules.owner) is not None:  # called by another entry of the same model
            return self.original(*args, **kwargs)
        rules.check()
        call = Call({**dict(zip(self.names, args, strict=False)), **kwargs}, rules.has_encoder)
        bound = _bound_for(rules, call, choices)
        _last.set((rules.owner, bound.decision))
        with activated(rules.batch(bound)):
            outputs = self.original(*args, **kwargs)
        for carrier in call.carriers(outputs, encodes=self.encodes):
            bind(carrier, bound)
        return outputs


@dataclass(eq=False)
class Generate:
    """Takes the place of a model's ``generate``."""

    rules: Rules
    model: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate; what the first forward decides holds for all of them, with a cache or without."""
        choices = kwargs.pop(CHOICES, None)
        past = kwargs.get("past_key_values")
        if choices is not None and bound_to(past, self.rules.owner) is not None:
            bind(past, Bound(self.rules.owner, as_decision(choices, self.rules.labels)))
        elif choices is None and past is None and self._hides_prompt(kwargs):
            choices = self._decide_by_prompt(args, kwargs)
        with generation(self.rules.owner, choices, keeps=True):
            return type(self.model).generate(self.model, *args, **kwargs)

    def _hides_prompt(self, kwargs: Mapping[str, Any]) -> bool:
        """Say whether the first forward gets less than the prompt (its first chunk) or more (tokens of an assistant)."""
        config = kwargs.get("generation_config") or self.model.generation_config
        options = [kwargs.get(name, getattr(config, name, None)) for name in _PROMPT_HIDING]
        around = _generation.get()
        is_fixed = around is not None and around.owner is self.rules.owner and around.choices is not None
        return any(option is not None for option in options) and not is_fixed

    def _decide_by_prompt(self, args: Any, kwargs: Mapping[str, Any]) -> Decision | None:
        ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        given = {**kwargs, "input_ids": ids}
        config = kwargs.get("generation_config") or self.model.generation_config
        pad, end = (kwargs.get(name, getattr(config, name)) for name in ("pad_token_id", "eos_token_id"))
        if isinstance(ids, torch.Tensor) and pad not in (None, end) and "attention_mask" not in kwargs:
            given["attention_mask"] = ids != pad  # as generate() guesses
        return self.rules.decide_rows(Call(given, self.rules.has_encoder).prefill(self.model)).decision

    def install(self) -> None:
        """Put this in its place."""
        self.model.__dict__["generate"] = self

    def remove(self) -> None:
        """Give the model its own ``generate`` back."""
        self.model.__dict__.pop("generate", None)


def _bound_for(rules: Rules, call: Call, choices: Any) -> Bound:
    """Return the decision for a forward: the call's own, else that of its cache, encoder, block or generation, else the router's."""
    if any(call.given.get(name) is not None for name in _PAGED):
        raise UsageError(
            "A row of this batch holds several sequences, which cannot be routed apart.",
            hint="Generate with one sequence a row, not with continuous batching.",
        )
    around = _generation.get()
    around = around if around is not None and around.owner is rules.owner else None
    if choices is None:
        kept = _kept(rules, call)
        if kept is not None:
            return rules.complete(kept, call.prefill(rules.model)) if kept.undecided else kept
        choices = around.choices if around is not None else None
    if choices is not None:
        return Bound(rules.owner, as_decision(choices, rules.labels)).fitted(call.rows, "The choice")
    _refuse_unknown_past(call)
    before = around.bound if around is not None and call.cache is None else None
    if before is not None and call.rows % len(before.decision.choices) == 0:
        return before.fitted(call.rows, "The generation's decision")
    bound = rules.decide_rows(call.prefill(rules.model))
    if around is not None and around.keeps:
        around.bound = bound
    return bound


def _kept(rules: Rules, call: Call) -> Bound | None:
    """Return the decision that the cache or the encoder's outputs carry, if any.

    Raises:
        UsageError: it is for other rows.
    """
    bound = bound_to(call.cache, rules.owner)
    if bound is not None:
        if len(bound.decision.choices) != call.rows:
            raise UsageError(
                f"The cache is for {len(bound.decision.choices)} rows, and this batch has {call.rows}.",
                hint="Repeat or select the cache's rows by its own methods.",
            )
        return bound
    for carrier in call.encoded:
        bound = bound_to(carrier, rules.owner)
        if bound is not None:
            return bound.fitted(call.rows, "The encoder's output")
    return None


def _refuse_unknown_past(call: Call) -> None:
    """Refuse tokens from before for which nobody decided: this call alone does not say what they were."""
    past = call.cache.get_seq_length() if call.cache is not None else 0
    if past or call.encoded:
        what = f"a cache of {past} tokens" if past else "outputs of an encoder"
        raise UsageError(
            f"This call brings {what} that the routed model did not make, so nothing says which packs its rows have.",
            hint=f"Say so: {CHOICES}=[…], a pack's name or None for each row.",
        )
