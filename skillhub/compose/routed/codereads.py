"""What the code of a module reads of parameters by itself, told from its bytecode.

A parameter can differ from row to row where the module that has it computes with it, in its own ``forward``. Some parents read a
child's parameter and never call the child (``F.conv1d(x, self.conv1d.weight)``); others have a name for a parameter that only a child
uses.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import CodeType
from typing import Any, TypeAlias

from torch import nn

Names: TypeAlias = tuple[str, ...]

_LOOKS = ("dtype", "device", "shape", "ndim", "size", "dim", "numel", "element_size", "is_meta", "requires_grad")
"""Attributes of a parameter that say nothing of its values."""

_SETTING_UP = ("__init__", "_init_weights", "_tie_weights", "tie_weights")
_GENERAL = ("torch.nn.modules.module", "transformers.modeling_utils", "transformers.generation.utils", "builtins")
"""Where classes are that read parameters of any module, such as for saving."""


def reader_of(modules: Mapping[str, nn.Module], path: str, name: str) -> tuple[str, str]:
    """Return the module whose code reads a parameter, and the parameter's name from there; mostly the module that has it.

    A linear module that the one around both calls and reads counts as called, unless that one has parameters itself: BLOOM, for one,
    reads where it imitates tensor parallelism.

    Args:
        modules: by qualified name.
        path: of the module that has the parameter.
        name: of the parameter in it.
    """
    parts = path.split(".") if path else []
    for length in range(len(parts)):
        above, below = ".".join(parts[:length]), (*parts[length:], name)
        around = modules[above]
        is_called = isinstance(modules[path], nn.Linear) and _reads_whole(around, below[:-1])
        if _reads_path(around, below) and not (is_called and not around._parameters):
            return above, ".".join(below)
    return path, name


def reads_itself(module: nn.Module, name: str) -> bool:
    """Say whether the code of a module reads a parameter that it has."""
    return _reads_path(module, (name,))


def _reads_whole(module: nn.Module, path: Names) -> bool:
    return path in attribute_reads(module)


def _reads_path(module: nn.Module, path: Names) -> bool:
    return any(names[: len(path)] == path for names in attribute_reads(module))


def has_parts(module: nn.Module) -> bool:
    """Say whether a module has others with parameters in it."""
    return any(next(child.parameters(), None) is not None for child in module.children())


def attribute_reads(module: nn.Module) -> frozenset[Names]:
    """Return what a module's methods read from ``self``: ``("conv1d", "weight")`` for ``self.conv1d.weight``."""
    kind: Any = type(module)
    return _reads_of(kind)


@cache
def _reads_of(kind: Any) -> frozenset[Names]:
    members = [item for one in kind.__mro__ if one.__module__ not in _GENERAL for item in vars(one).items()]
    codes = [_code_of(member) for name, member in members if name not in _SETTING_UP]
    return frozenset(names for code in codes if code is not None for names in _reads(code))


def _code_of(member: Any) -> CodeType | None:
    function: Callable[..., Any] | None = member.fget if isinstance(member, property) else member
    return getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None


def _reads(code: CodeType) -> Iterator[Names]:
    steps = [one for one in dis.get_instructions(code) if one.opname not in ("CACHE", "PRECALL", "EXTENDED_ARG", "NOP")]
    for place, one in enumerate(steps):
        if not _loads_self(one) or (place and steps[place - 1].argval == "isinstance"):
            continue
        names: Names = ()
        for following in steps[place + 1 :]:
            if following.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                break
            names = (*names, str(following.argval))
        if not set(names).intersection(_LOOKS):
            yield names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _reads(inner)


def _loads_self(step: dis.Instruction) -> bool:
    names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
    return step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) and names[-1:] == ("self",)
