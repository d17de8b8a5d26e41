"""What a forward was called with, as far as routing needs to know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from skillhub.compose.routed.bindings import is_cache
from skillhub.errors import UsageError
from skillhub.routing.decisions import Prefill

_INPUTS = (
    *("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds"),
    *("pixel_values", "input_features", "input_values"),
)
"""Arguments that have a row for each of the batch; of images and sounds alone routers see nothing, but callers may choose."""

_MEDIA = ("pixel_values", "pixel_values_videos", "input_features", "input_values")
"""Arguments that hold images and sounds; beside text they belong to the rows whose text has places for them."""

_PLACES = re.compile(r"(image|video|audio)_token_(id|index)")
"""Names in a config of the tokens that stand for parts of images and sounds in a text."""


@dataclass(eq=False)
class Call:
    """The arguments of one forward.

    Attributes:
        given: argument → value.
        has_encoder: whether the model is an encoder-decoder.
        cache: the cache among them, or None.
    """

    given: Mapping[str, Any]
    has_encoder: bool
    cache: Any = field(init=False)

    def __post_init__(self) -> None:
        caches = [value for value in self.given.values() if is_cache(value)]
        self.cache = caches[0] if caches else None

    @property
    def encoded(self) -> list[Any]:
        """What an encoder put out before, as far as it may carry a decision; empty where it did not run yet."""
        outputs = self.given.get("encoder_outputs") if self.has_encoder else None
        states = self.given.get("encoder_hidden_states") if self.has_encoder else None
        if outputs is not None:
            return [outputs] if isinstance(outputs, torch.Tensor) else [outputs, outputs[0]]
        return [] if states is None else [states]

    @property
    def past(self) -> int:
        """How many tokens the cache holds; 1 for one that holds states and does not count."""
        if self.cache is None:
            return 0
        layers = getattr(self.cache, "layers", ())
        if layers and all(hasattr(layer, "has_previous_state") for layer in layers):  # Mamba's, which count nothing
            return int(any(any(layer.has_previous_state.values()) for layer in layers))
        return int(self.cache.get_seq_length())

    @property
    def is_continued(self) -> bool:
        """Whether there are tokens from before, or outputs of an encoder."""
        return self.past > 0 or bool(self.encoded)

    @property
    def rows(self) -> int:
        """How many rows the batch has.

        Raises:
            UsageError: there is no input.
        """
        found = [self.given[name] for name in _INPUTS if isinstance(self.given.get(name), torch.Tensor)]
        found += [one for one in self.encoded if isinstance(one, torch.Tensor)]
        if not found:
            raise UsageError("There is no input to route by.", hint="Pass input_ids or inputs_embeds.")
        return len(found[0])

    def has_uneven_media(self, config: Any) -> bool:
        """Say whether images or sounds stand beside text, and not equally many for each row as far as can be told."""
        ids = self.given.get("input_ids")
        media = [self.given[name] for name in _MEDIA if isinstance(self.given.get(name), torch.Tensor)]
        if not media or not isinstance(ids, torch.Tensor):
            return False
        tokens = {value for name, value in vars(config).items() if _PLACES.fullmatch(name) and isinstance(value, int)}
        counts = [(ids == token).sum(1) for token in tokens]
        uneven = any(bool((count != count[0]).any()) for count in counts)
        return uneven or any(len(one) % len(ids) for one in media)

    def prefill(self, model: nn.Module) -> Prefill:
        """Return what a router sees of this call: of a mask that goes further back, the part of these inputs."""
        ids, embeds = self.given.get("input_ids"), self.given.get("inputs_embeds")
        inputs = ids if ids is not None else embeds
        mask = self.given.get("attention_mask")
        if inputs is None or not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            mask = None
        elif mask.shape[1] != inputs.shape[1]:
            mask = mask[:, -inputs.shape[1] :]
        place = next(model.parameters()).device  # generate() moves inputs there, and only later

        def placed(value: Any) -> Any:
            return value.to(place) if isinstance(value, torch.Tensor) else value

        return Prefill(model, placed(ids), placed(mask), placed(embeds) if ids is None else None)

    def carriers(self, outputs: Any, *, encodes: bool) -> list[Any]:
        """Return what can keep a decision for the next forward: caches, and the outputs of an encoder."""
        is_mapping = isinstance(outputs, Mapping)
        values = list(outputs.values()) if is_mapping else list(outputs) if isinstance(outputs, tuple) else []
        caches = [value for value in (self.cache, *values) if is_cache(value)]
        return [*caches, *([outputs] if is_mapping else []), *values[:1]] if encodes else caches
