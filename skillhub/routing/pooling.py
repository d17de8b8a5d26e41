"""One vector per prompt and layer: the mean of the base's early hidden states over the prompt's content."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from skillhub.errors import UsageError
from skillhub.routing.contents import ChatMarkers, find_content
from skillhub.routing.decisions import Prefill, early_states, find_layers

POOLING = "content-mean"
"""What a manifest calls this pooling."""


def pooled_states(prefill: Prefill, layers: Sequence[int], markers: ChatMarkers | None) -> torch.Tensor:
    """Return the mean state of each row's content before each of some layers, from one run up to the last of them.

    Args:
        prefill: the batch.
        layers: indices of layers, rising.
        markers: of the chat template that may stand around the content.

    Returns:
        (layers, rows, hidden) fp32, on the CPU.

    Raises:
        UsageError: the model has no such layer.
    """
    content = content_of(prefill, markers)
    share = content.to(torch.float32) / content.sum(1, keepdim=True).clamp(min=1)
    found: dict[int, torch.Tensor] = {}
    thread = threading.get_ident()

    def pool(states: torch.Tensor) -> torch.Tensor:
        states = states.to(torch.float32)
        attended = torch.where(content.to(states.device)[..., None], states, 0)  # padding may hold NaN
        # no matrix product, which autocast and the process's matmul precision would compute in fewer bits
        return attended.mul_(share.to(states.device)[..., None]).sum(1).cpu()

    def keep(layer: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if threading.get_ident() == thread:  # others may run the model meanwhile
                found[layer] = pool(args[0] if args else kwargs["hidden_states"])

        return hook

    *inner, last = layers
    modules = find_layers(prefill.model)[1]
    if last >= len(modules):
        raise UsageError(
            f"The layer {last} is judged, and the model has {len(modules)}.",
            hint="Use the base model that the packs were made for.",
        )
    with ExitStack() as hooks:
        for layer in inner:
            hooks.callback(modules[layer].register_forward_pre_hook(keep(layer), with_kwargs=True).remove)
        found[last] = pool(early_states(prefill, last))
    return torch.stack([found[layer] for layer in layers])


def content_of(prefill: Prefill, markers: ChatMarkers | None) -> torch.Tensor:
    """Return which positions of a batch hold content, as :func:`skillhub.routing.contents.find_content`: (rows, length) bool."""
    ids = prefill.input_ids
    if ids is None:  # embeddings have no ids to find a template by
        ids, markers = torch.zeros(prefill.rows, prefill.length, dtype=torch.long), None
    return find_content(ids, prefill.attention_mask, markers)
