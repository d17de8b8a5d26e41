"""What routers decide on, and what they decide: the values that go between ``skillhub.routing`` and ``skillhub.compose.routed``."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from skillhub.errors import UsageError


@dataclass(frozen=True, eq=False)
class Prefill:
    """What a router sees: a batch before its first token is generated.

    Attributes:
        model: the base model, also where packs are grafted onto it; :func:`early_states` runs it without them.
        input_ids: (rows, length) token ids, or None where embeddings were given; of an encoder-decoder, the encoder's.
        attention_mask: (rows, length), 0 at padding of either side; None where no position is padding.
        inputs_embeds: (rows, length, hidden), or None.
    """

    model: nn.Module
    input_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    inputs_embeds: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """How many sequences there are."""
        return len(self._inputs)

    @property
    def length(self) -> int:
        """How many positions each sequence has, padding included."""
        return int(self._inputs.shape[1])

    @property
    def _inputs(self) -> torch.Tensor:
        inputs = self.input_ids if self.input_ids is not None else self.inputs_embeds
        if inputs is None:
            raise UsageError("There is no input to route by.", hint="Pass input_ids or inputs_embeds.")
        return inputs

    def select(self, rows: Sequence[int]) -> Prefill:
        """Return some of the rows, in the given order."""
        index = torch.tensor(list(rows), dtype=torch.long)

        def chosen(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor[index.to(tensor.device)]

        return Prefill(self.model, chosen(self.input_ids), chosen(self.attention_mask), chosen(self.inputs_embeds))


@dataclass(frozen=True, eq=False)
class Decision:
    """Which pack each sequence of a batch gets.

    Attributes:
        packs: names of the packs, in the order of the columns of ``scores`` and ``mixture``.
        choices: for each row the index of its pack in ``packs``, or None for the base.
        scores: (rows, packs) fp32, what the router measured; None where it measures nothing.
        mixture: (rows, packs) weights of the packs, for soft routing, where ``choices`` only say which pack weighs most; None
            for one pack a row.
    """

    packs: tuple[str, ...]
    choices: tuple[int | None, ...]
    scores: torch.Tensor | None = None
    mixture: torch.Tensor | None = None

    @property
    def labels(self) -> tuple[str | None, ...]:
        """For each row the name of its pack, or None for the base."""
        return tuple(None if choice is None else self.packs[choice] for choice in self.choices)

    def select(self, rows: Sequence[int]) -> Decision:
        """Return the decision of some rows, in the given order; a row may come several times."""
        rows = list(rows)
        return Decision(
            self.packs,
            tuple(self.choices[row] for row in rows),
            None if self.scores is None else self.scores[rows],
            None if self.mixture is None else self.mixture[rows],
        )


class Router(Protocol):
    """Anything that decides which pack each row of a batch gets."""

    def route(self, prefill: Prefill) -> Decision:
        """Return one choice per row."""
        ...


@runtime_checkable
class SelectiveRouter(Router, Protocol):
    """A router that can be told to choose among some of its packs only."""

    @property
    def packs(self) -> tuple[str, ...]:
        """Names of the packs that it chooses among."""

    def among(self, packs: Collection[str]) -> Router:
        """Return a router of the same kind that chooses among some of the packs, at least one."""
        ...


_base_alone: ContextVar[bool] = ContextVar("skillhub_base_alone", default=False)
_stop: ContextVar[object] = ContextVar("skillhub_stop", default=None)


@contextmanager
def base_alone() -> Iterator[None]:
    """Run models without the packs that are routed on them, in this thread (or task) and for the length of the block."""
    token = _base_alone.set(True)
    try:
        yield
    finally:
        _base_alone.reset(token)


def is_base_alone() -> bool:
    """Say whether this runs inside :func:`base_alone`."""
    return _base_alone.get()


class _Reached(Exception):  # noqa: N818 - nothing went wrong: the states are there
    """Carries hidden states out of a forward that need not go on."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


def early_states(prefill: Prefill, layer: int) -> torch.Tensor:
    """Run the base up to a layer, and return what would enter that layer.

    No pack is active, no gradient is kept and the layers from ``layer`` on do not run. Of an encoder-decoder the layers are the
    encoder's. Other threads may use the model meanwhile.

    Args:
        prefill: the batch.
        layer: index of the layer, from 0 (its input: the embeddings) to the number of layers less one.

    Returns:
        (rows, length, hidden), in the model's dtype; what stands at padding means nothing.

    Raises:
        UsageError: the model has no such layer.
    """
    stack, layers = find_layers(prefill.model)
    if not 0 <= layer < len(layers):
        raise UsageError(f"There is no layer {layer} among {len(layers)}.", hint="Count layers from 0.")
    mark = object()

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _stop.get() is mark:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

    token = _stop.set(mark)
    handle = layers[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad(), base_alone():
            stack(**_stack_inputs(stack, prefill))
    except _Reached as reached:
        return reached.states
    finally:
        handle.remove()
        _stop.reset(token)
    raise UsageError(
        f"{type(prefill.model).__name__} did not run its layer {layer}.", hint="Route by labels, or by a callable."
    )


def find_layers(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """Return the part of a model that reads the prompt (of an encoder-decoder the encoder), and its list of layers.

    Raises:
        UsageError: the model has no list of layers.
    """
    config = getattr(model, "config", None)
    stack: Any = getattr(model, "base_model", model)
    if getattr(config, "is_encoder_decoder", False):
        stack = model.get_encoder()  # type: ignore[operator]
    lists = [module for module in stack.modules() if isinstance(module, nn.ModuleList)]
    depth = getattr(config, "num_hidden_layers", None)
    fitting = [one for one in lists if len(one) == depth] or sorted(lists, key=len, reverse=True)
    if not fitting:
        raise UsageError(f"{type(model).__name__} has no list of layers.", hint="Route by labels, or by a callable.")
    return stack, fitting[0]


def _stack_inputs(stack: nn.Module, prefill: Prefill) -> dict[str, Any]:
    """Return the arguments for a forward of the stack; with padding on the left, positions count from the first token."""
    accepted = inspect.signature(type(stack).forward).parameters
    mask, generates = prefill.attention_mask, getattr(prefill.model, "can_generate", bool)()
    positions = None
    if mask is not None and generates and not bool(mask[:, 0].all()):
        positions = (mask.long().cumsum(-1) - 1).clamp_(min=0)  # as generate() passes them
    given = {
        "input_ids": prefill.input_ids,
        "inputs_embeds": prefill.inputs_embeds if prefill.input_ids is None else None,
        "attention_mask": mask,
        "position_ids": positions,
        "use_cache": False,
    }
    return {name: value for name, value in given.items() if value is not None and name in accepted}
