"""Stand-ins: modules as they are with other parameters; the modules themselves, which other threads may run, are not touched."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from skillhub.errors import UsageError


def stand_in(module: nn.Module, values: Mapping[str, torch.Tensor], *, without: str = "") -> nn.Module:
    """Return an object that is the module, but for some parameters or buffers; the module itself is not touched.

    Args:
        module: the module.
        values: name, as ``module.get_parameter`` takes it, → tensor.
        without: an attribute of the module that the stand-in does not get.

    Raises:
        UsageError: the module has no such parameter any more, as under ``torch.nn.utils.parametrize``.
    """
    made = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    made.__dict__.pop(without, None)
    own = {name: value for name, value in values.items() if "." not in name}
    gone = sorted(own.keys() - module._parameters.keys() - module._buffers.keys())
    if gone:
        raise UsageError(
            f"The {gone[0]} of a {type(module).__name__} was replaced since packs were grafted.",
            hint="Ungraft, change the model, and fuse packs into a checkpoint; or load the base model again.",
        )
    for kind in ("_parameters", "_buffers"):
        held = getattr(module, kind)
        made.__dict__[kind] = {**held, **{name: value for name, value in own.items() if name in held}}
    for child in {name.partition(".")[0] for name in values if "." in name}:
        inner = {name.partition(".")[2]: value for name, value in values.items() if name.partition(".")[0] == child}
        replaced = stand_in(getattr(module, child), inner, without="forward")
        made.__dict__["_modules"] = {**made.__dict__["_modules"], child: replaced}
    return made
