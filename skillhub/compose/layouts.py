"""The layout of any model that packs are grafted onto, compiled or not, and a clear word for models that cannot be."""

from __future__ import annotations

from torch import nn

from skillhub.compose.graftstates import state_of
from skillhub.compose.offloading import reach_offloaded
from skillhub.compose.quantizedlayouts import is_quantized, plain_twin, quantized_layout
from skillhub.compose.sidepaths import NAMES, is_hidden, readable
from skillhub.compose.trainable import train_beside
from skillhub.errors import UsageError
from skillhub.interop.modules import Modules, modules_of
from skillhub.layout import Layout, layout_of


def plain_model(model: nn.Module) -> nn.Module:
    """Return the model that ``torch.compile`` wrapped; any other as it is. Both have the same parameters.

    Raises:
        UsageError: it is no model.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"A model is needed here, and a {type(model).__name__} is none.",
            hint="Give the model that from_pretrained returned; of a pipeline its attribute model.",
        )
    inner = model.__dict__.get("_modules", {}).get("_orig_mod")
    return inner if isinstance(inner, nn.Module) else model


def graft_layout(model: nn.Module) -> Layout:
    """Learn where a model keeps the tensors that packs change.

    Raises:
        UsageError: it is not a model of transformers, its parameters are spread over processes or offloaded to disk, or as
            :func:`skillhub.layout.layout_of`.
    """
    refuse_sharded(model)
    layout = quantized_layout(model) if is_quantized(model) else reach_offloaded(model, layout_of(model))
    return Layout({name: slot for name, slot in layout.slots.items() if name.rpartition(".")[2] not in NAMES})


def graft_modules(model: nn.Module, layout: Layout) -> Modules:
    """Return where the parameters of a model's modules are, for adapters, which name those.

    Raises:
        UsageError: as :func:`graft_layout`.
    """
    return modules_of(plain_twin(model)) if is_hidden(layout) else modules_of(model, layout)


def graft_repeats(layout: Layout) -> dict[str, str]:
    """Return alias → original for untied copies of other tensors, as :meth:`skillhub.layout.Layout.repeats`."""
    return readable(layout).repeats()


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model whose parameters are spread over processes.

    Raises:
        UsageError: FSDP or tensor parallelism has a part of each.
    """
    managed = any(getattr(module, "_is_fsdp_managed_module", False) for module in model.modules())
    if managed or any(_is_distributed(parameter) for parameter in model.parameters()):
        raise UsageError(
            "The model is sharded: its parameters are spread over processes, and a pack's delta is of whole tensors.",
            hint="Graft before the model is wrapped (FSDP, fully_shard, tp_plan), or fuse the packs into a checkpoint with "
            "`skillhub fuse` and load that.",
        )


def _is_distributed(parameter: nn.Parameter) -> bool:
    return any(kind.__name__ == "DTensor" for one in (parameter, parameter.data) for kind in type(one).__mro__)


def grafted_layout(model: nn.Module) -> Layout:
    """Return the layout of a model, with the tensors of a pack that is trained beside their layers.

    Raises:
        UsageError: as :func:`skillhub.compose.layouts.graft_layout`.
    """
    layout, state = graft_layout(model), state_of(model)
    return train_beside(model, layout, state.trained) if state and state.trained else layout
