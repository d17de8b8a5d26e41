"""A model's modules as adapters name them, and the canonical tensors that hold their parameters.

An adapter says ``model.layers.0.self_attn.q_proj``, which is a name in the Python object. Checkpoint names are others in
transformers 5, so the way leads through the model's layout; for a checkpoint, through that of an empty model of its class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skillhub.canonical import WRAPPERS
from skillhub.errors import UsageError
from skillhub.layout import Layout, Slot, layout_of

Shape = tuple[int, ...]

HERE_ALONE: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments of ``from_pretrained``: nothing is fetched, and code that a model brings along is neither run nor asked about."""

_MOST_PARTS = 2048
"""Of layers, and of experts in one."""

_MOST_SAID = 300
"""Characters of what transformers says is wrong with a config."""


def check_tokens(model: nn.Module, rows: Iterable[Sequence[int]]) -> None:
    """Refuse token ids that a model has no embedding of.

    Raises:
        UsageError: the tokenizer that they are from has more tokens than the model.
    """
    with suppress(
        AttributeError, NotImplementedError
    ):  # of a model that is not transformers', or has no embedding of words
        known = len(model.get_input_embeddings().weight)  # type: ignore[operator]
        largest = max((max(row) for row in rows if row), default=0)
        if largest < known:
            return
        raise UsageError(
            f"The tokenizer has a token {largest}, and the model embeds {known} tokens only.",
            hint="Use the tokenizer that the model was trained with, or resize the model to it (resize_token_embeddings); "
            "without prompts none is needed.",
        )


@dataclass(frozen=True, eq=False)
class Modules:
    """Where the parameters of a model's modules are in its checkpoint.

    Attributes:
        layout: the model's layout.
        shapes: of every parameter, by its qualified name.
        kept: name of a tied parameter → name of the one that the layout has.
        transposed: names of the weights that are stored as inputs × outputs (GPT-2's ``Conv1D``).
    """

    layout: Layout
    shapes: Mapping[str, Shape]
    kept: Mapping[str, str]
    transposed: frozenset[str]

    @cached_property
    def held(self) -> Mapping[str, list[str]]:
        """Parameter → canonical names of the tensors that it holds, or parts of them."""
        found: dict[str, list[str]] = defaultdict(list)
        for name, slot in self.layout.slots.items():
            for parameter in slot.parameter_names:
                found[parameter].append(name)
        return found

    @cached_property
    def tied(self) -> Mapping[str, list[str]]:
        """Parameter of the layout → the other names that it has in the model, where it is shared."""
        found: dict[str, list[str]] = defaultdict(list)
        for alias, name in self.kept.items():
            found[name].append(alias)
        return found

    @cached_property
    def _by_checkpoint_name(self) -> Mapping[str, Slot]:
        return {slot.saved_name: slot for slot in self.layout.slots.values()}

    def parameter(self, name: str) -> str | None:
        """Return the parameter of the layout that an adapter means, or None."""
        for candidate in (name, _without_wrapper(name)):
            found = self.kept.get(candidate, candidate)
            if found in self.held:
                return found
        return None

    def slot(self, name: str) -> Slot | None:
        """Return the slot whose checkpoint name an adapter gives, or None: such adapters were made for older classes."""
        found = self._by_checkpoint_name.get(name)
        return found or self.layout.slots.get(name) or self.layout.slots.get(_without_wrapper(name))


def modules_of(model: nn.Module, layout: Layout | None = None) -> Modules:
    """Return where the parameters of a model's modules are.

    Args:
        model: a model of transformers; its weights are not read.
        layout: its layout, where it is known.

    Raises:
        UsageError: as :func:`skillhub.layout.layout_of`.
    """
    from transformers.pytorch_utils import Conv1D

    layout = layout or layout_of(model)
    named = dict(model.named_parameters(remove_duplicate=False))
    in_layout = {name for slot in layout.slots.values() for name in slot.parameter_names}
    names = {id(named[name]): name for name in in_layout if name in named}
    kept = {name: names[id(one)] for name, one in named.items() if name not in in_layout and id(one) in names}
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    shapes = {name: tuple(one.shape) for name, one in named.items()}
    return Modules(layout, shapes, kept, frozenset(transposed))


def is_transposed(module: nn.Module) -> bool | None:
    """Say whether a linear module keeps its weight as inputs × outputs; None for modules that factors cannot be added to."""
    from transformers.pytorch_utils import Conv1D

    if type(module) is nn.Linear:  # a subclass may compute something else
        return False
    return True if type(module) is Conv1D else None


def empty_model(folder: Path) -> Any:
    """Return a model of the class that a checkpoint's config names, without weights.

    Raises:
        UsageError: there is no config, or one that no model can be made of, or transformers has no such class.
    """
    import transformers

    hint = "Load the model, and graft the adapter onto it: skillhub.graft(model, packs)."
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **HERE_ALONE)
        kind = getattr(transformers, (config.architectures or [""])[0])
        if not issubclass(kind, transformers.PreTrainedModel):
            raise ValueError(f"{kind} is no model")
        _check_counts(config.to_dict())
    except Exception as error:  # a stranger's config may make transformers raise anything
        raise UsageError(
            f"{folder} does not say which class of transformers it is of, and adapters name the modules of that class: "
            f"{' '.join(str(error).split())[:_MOST_SAID]}",
            hint=hint,
        ) from error
    try:
        with torch.device("meta"):
            return kind(config)
    except Exception as error:
        raise UsageError(f"No {kind.__name__} can be made of {folder / 'config.json'}: {error}", hint=hint) from error


def _check_counts(config: Mapping[str, Any]) -> None:
    """Refuse a config with more layers or experts than any model: to build them would take for ever."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_counts(value)
        if isinstance(value, int) and value > _MOST_PARTS and key.endswith(("layers", "layer", "experts")):
            raise ValueError(f"{key} is {value}, more than {_MOST_PARTS}")


def _without_wrapper(name: str) -> str:
    first, _, rest = name.partition(".")
    return rest if first in WRAPPERS else name
