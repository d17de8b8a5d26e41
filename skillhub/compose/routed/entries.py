"""Entries: the modules that callers call. Each forward that enters a routed model is decided here, or finds what was decided."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from skillhub.compose.routed.batches import activated, active_batch
from skillhub.compose.routed.bindings import Bound, bind, bound_to
from skillhub.compose.routed.calls import Call
from skillhub.compose.routed.generations import generation, generation_of, note_decision
from skillhub.compose.routed.rules import Rules
from skillhub.errors import UsageError
from skillhub.routing.decisions import is_base_alone

CHOICES = "pack_choices"
"""Argument of a routed model's forward and ``generate``: the choices that a caller fixes for this call."""

_PAGED = ("cu_seq_lens_q", "block_table", "block_tables")
"""Arguments of forwards that hold several sequences in one row."""


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
        batch = rules.batch(bound)
        rules.check_media(batch, call)
        note_decision(rules.owner, bound.decision)
        with activated(batch):
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
        """Generate; what is decided by the prompt holds for all forwards, with a cache or without."""
        choices: Any = kwargs.pop(CHOICES, None)
        past = kwargs.get("past_key_values")
        if choices is not None and bound_to(past, self.rules.owner) is not None:
            bind(past, Bound(self.rules.owner, self.rules.read(choices)))
        elif choices is None and not is_base_alone() and not self._is_decided(kwargs):
            choices = self._decide_by_prompt(args, kwargs)
        with generation(self.rules.owner, choices, keeps=True):
            return type(self.model).generate(self.model, *args, **kwargs)

    def _is_decided(self, kwargs: Mapping[str, Any]) -> bool:
        """Say whether a block around, the cache or the encoder's outputs say what is chosen, or have to."""
        around = generation_of(self.rules.owner)
        is_fixed = around is not None and around.choices is not None
        call = Call(kwargs, self.rules.has_encoder)
        return is_fixed or bound_to(call.cache, self.rules.owner) is not None or call.is_continued

    def _decide_by_prompt(self, args: Any, kwargs: Mapping[str, Any]) -> Bound | None:
        """Ask the router before anything is done to the prompt; None where there is none, or not of tokens.

        The first forward may get a chunk of it, a row several times for beams, an assistant's tokens behind it, or a mask that no
        router reads.
        """
        self.rules.check()
        ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        prefill = Call({**kwargs, "input_ids": ids}, self.rules.has_encoder).prefill(self.model)
        if not isinstance(prefill.input_ids if prefill.input_ids is not None else prefill.inputs_embeds, torch.Tensor):
            return None  # generate() makes up a prompt, or says what is wrong
        if prefill.input_ids is not None and kwargs.get("attention_mask") is None:
            pad = self._pad_token(args[1] if len(args) > 1 else kwargs.get("generation_config"), kwargs)
            mask = None if pad is None else prefill.input_ids != pad
            prefill = replace(prefill, attention_mask=mask)
        return self.rules.decide_rows(prefill)

    def _pad_token(self, config: Any, kwargs: Mapping[str, Any]) -> int | None:
        """Return the token by which ``generate`` tells padding where it gets no mask; None where it does not."""

        def option(name: str) -> Any:
            given = kwargs.get(name, getattr(config, name, None))
            return getattr(self.model.generation_config, name) if given is None else given

        pad, ends = option("pad_token_id"), option("eos_token_id")
        return pad if isinstance(pad, int) and pad not in torch.as_tensor(ends if ends is not None else []) else None

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
    around = generation_of(rules.owner)
    if choices is None:
        kept = _kept(rules, call)
        if kept is not None:
            return rules.complete(kept, call.prefill(rules.model)) if kept.undecided else kept
        choices = around.choices if around is not None else None
    if choices is not None:
        bound = choices if isinstance(choices, Bound) else Bound(rules.owner, rules.read(choices))
        return bound.fitted(call.rows, "The choice")
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
    if call.is_continued:
        past = call.past
        what = f"a cache of {past} tokens" if past else "outputs of an encoder"
        raise UsageError(
            f"This call brings {what} that the routed model did not make, so nothing says which packs its rows have.",
            hint=f"Say so: {CHOICES}=[…], a pack's name or None for each row.",
        )
