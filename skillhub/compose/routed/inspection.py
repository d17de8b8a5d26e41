"""Seeing and fixing decisions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from skillhub.compose.routed.bindings import any_decision
from skillhub.compose.routed.generations import generation, last_decision_of
from skillhub.compose.routed.states import Routing, routing_of
from skillhub.errors import UsageError
from skillhub.routing.decisions import Decision, Prefill


@contextmanager
def choose(model: nn.Module, choices: Any) -> Iterator[None]:
    """Fix what is decided inside the block, in this thread (or task).

    Args:
        model: a routed model.
        choices: a pack's name or None for each row, or a decision. Batches of as many rows for each choice will do.

    Raises:
        UsageError: a name is no routed pack's or one that is switched off, or no pack is routed on the model.
    """
    rules = _routing(model).rules
    with generation(rules.owner, rules.read(choices)):
        yield


def decide(
    model: nn.Module,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
) -> Decision:
    """Return what the router decides for a batch, which is not computed further.

    Args:
        model: a routed model.
        input_ids: (rows, length); of an encoder-decoder, the encoder's.
        attention_mask: (rows, length), 0 at padding.
        inputs_embeds: (rows, length, hidden), in place of ids.

    Raises:
        UsageError: no pack is routed on the model, or there is no input.
    """
    rules = _routing(model).rules
    return rules.decide_rows(Prefill(rules.model, input_ids, attention_mask, inputs_embeds)).decision


def decisions(carrier: Any) -> Decision | None:
    """Return the decision that a cache (or an encoder's output) keeps, a row each; None where it keeps none."""
    return any_decision(carrier)


def last_decision(model: nn.Module) -> Decision | None:
    """Return the decision of the last forward of a routed model in this thread (or task)."""
    return last_decision_of(_routing(model).rules.owner)


def _routing(model: nn.Module) -> Routing:
    found = routing_of(model)
    if found is None:
        raise UsageError("No pack is routed on this model.", hint="Graft with mode='routed' first.")
    return found
