"""The layout of any model that packs are grafted onto, compiled or not, and a clear word for models that cannot be."""

from __future__ import annotations

from torch import nn

from skillhub.errors import UsageError
from skillhub.layout import Layout, layout_of

_SHARDED = ("DTensor", "FlatParameter")


def plain_model(model: nn.Module) -> nn.Module:
    """Return the model that ``torch.compile`` wrapped; any other as it is. Both have the same parameters."""
    inner = model.__dict__.get("_modules", {}).get("_orig_mod")
    return inner if isinstance(inner, nn.Module) else model


def graft_layout(model: nn.Module) -> Layout:
    """Learn where a model keeps the tensors that packs change.

    Raises:
        UsageError: it is not a model of transformers, its parameters are spread over processes, or as
            :func:`skillhub.layout.layout_of`.
    """
    refuse_sharded(model)
    return layout_of(model)


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model whose parameters are spread over processes.

    Raises:
        UsageError: FSDP or tensor parallelism has a part of each.
    """
    for name, parameter in model.named_parameters():
        kinds = {kind.__name__ for one in (parameter, parameter.data) for kind in type(one).__mro__}
        if kinds & set(_SHARDED):
            raise UsageError(
                f"The model is sharded: {name} is spread over processes, and a pack's delta is of the whole tensor.",
                hint="Graft before the model is wrapped (FSDP, fully_shard, tp_plan), or fuse the packs into a checkpoint with "
                "`skillhub fuse` and load that.",
                parameter=name,
            )
