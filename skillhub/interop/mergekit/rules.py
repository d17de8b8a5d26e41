"""mergekit's merge methods as its version 0.1.5 defines them: the models each takes, and the parameters it can be told."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from skillhub.interop.mergekit.amounts import Kind, Value
from skillhub.interop.mergekit.models import ModelName
from skillhub.interop.mergekit.nodes import Entry, Place

Scope = Literal["shared", "input", "tuned"]
"""For the tensor as a whole, for every model, or for every model but the base."""

_NUMBER = Kind()
_SHARE = Kind(low=0, high=1)
_POSITIVE = Kind(low=0)
_SWITCH = Kind(is_switch=True)


@dataclass(frozen=True)
class Parameter:
    """Something that a method can be told.

    Attributes:
        kind: what values it may have.
        scope: what it is told for.
        default: its value where a file says nothing; None where a file must say it.
    """

    kind: Kind
    scope: Scope = "shared"
    default: Value | None = None


@dataclass(frozen=True)
class MethodRules:
    """What a merge method asks of a file.

    Attributes:
        base: whether a base model must, may or need not be there (then it is a model like the others).
        models: least and largest number of models, without the base where there is one.
        parameters: what it can be told, by name.
        useless: parameters that mergekit reads and does not use → what to do.
    """

    base: Literal["required", "optional", "ignored"]
    models: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    useless: Mapping[str, str] = field(default_factory=dict)

    def check_models(self, models: Sequence[ModelName], base: ModelName | None, place: Place) -> None:
        """Check the models of a merge, or of one slice of it.

        Args:
            models: all that take part, with the base where it does.
            base: the base model, if one was named.
            place: where the models stand.

        Raises:
            UsageError: a model is there twice, the base is not among them, or they are too few or too many.
        """
        for number, model in enumerate(models):
            if model in models[:number]:
                raise model.place.error(f"{model} is there twice.", "Name every model once, with one weight.")
        counted = list(models)
        if self.base != "ignored":
            if base is None and self.base == "required":
                raise place.error("the method needs a base_model.", "Name the model that the others are tuned from.")
            if base is not None:
                if base not in models:
                    raise place.error(
                        f"the base model {base} is not among the sources.", "Add it to the slice's sources."
                    )
                counted.remove(base)
        low, high = self.models
        if len(counted) < low or (high is not None and len(counted) > high):
            wanted = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
            beside = " beside the base" if base is not None and self.base != "ignored" else ""
            raise place.error(f"the method takes {wanted} models{beside}, not {len(counted)}.", "Change their number.")

    def parameter(self, name: str, entry: Entry) -> Parameter:
        """Return one of the method's parameters.

        Raises:
            UsageError: it has none of that name.
        """
        if name in self.parameters:
            return self.parameters[name]
        hint = self.useless.get(name)
        if hint is None:
            near = difflib.get_close_matches(name, self.parameters, n=1)
            listed = f"Its parameters: {', '.join(self.parameters) or 'none'}."
            hint = f"Did you mean {near[0]!r}? {listed}" if near else f"Remove it. {listed}"
        raise entry.place.error(f"the merge method has no parameter {name!r}.", hint)


_INPUT_WEIGHT = {"weight": Parameter(_NUMBER, "input")}
_WEIGHT = {"weight": Parameter(_NUMBER, "tuned")}
_UNUSED = "mergekit reads it and does not use it: remove it."


def _arithmetic(*, trims: bool = True, normalize: bool, rescale: bool, **more: Parameter) -> MethodRules:
    """Return the rules of a method that adds differences to a base."""
    trimming = {"density": Parameter(_SHARE, "tuned", 1.0), "rescale": Parameter(_SWITCH, default=rescale), **more}
    shared = {
        "normalize": Parameter(_SWITCH, default=normalize),
        "lambda": Parameter(_NUMBER, default=1.0),
        "int8_mask": Parameter(_SWITCH, default=False),
    }
    unused = {} if trims else {"density": "Remove it, or use a method that trims, such as ties.", "rescale": _UNUSED}
    return MethodRules("required", (0, None), {**_WEIGHT, **shared, **(trimming if trims else {})}, unused)


_GAMMA = Parameter(_SHARE, "tuned", 0.01)
_EPSILON = Parameter(_SHARE, "tuned", 0.15)
_SMALL = Parameter(_POSITIVE, default=1e-5)

METHODS: Mapping[str, MethodRules] = {
    "linear": MethodRules("ignored", parameters={**_INPUT_WEIGHT, "normalize": Parameter(_SWITCH, default=True)}),
    "task_arithmetic": _arithmetic(trims=False, normalize=False, rescale=False),
    "ties": _arithmetic(normalize=True, rescale=False),
    "dare_linear": _arithmetic(normalize=False, rescale=True),
    "dare_ties": _arithmetic(normalize=False, rescale=True),
    "della": _arithmetic(normalize=True, rescale=True, epsilon=_EPSILON),
    "della_linear": _arithmetic(normalize=False, rescale=True, epsilon=_EPSILON),
    "breadcrumbs": _arithmetic(normalize=False, rescale=False, gamma=_GAMMA),
    "breadcrumbs_ties": _arithmetic(normalize=False, rescale=False, gamma=_GAMMA),
    "sce": MethodRules(
        "required",
        (0, None),
        {"select_topk": Parameter(_SHARE, default=1.0), "int8_mask": Parameter(_SWITCH, default=False)},
    ),
    "model_stock": MethodRules("required", (2, None), {"filter_wise": Parameter(_SWITCH, default=False)}),
    "slerp": MethodRules("required", (1, 1), {"t": Parameter(_NUMBER)}),
    "nuslerp": MethodRules(
        "optional",
        (2, 2),
        {
            **_WEIGHT,
            "nuslerp_row_wise": Parameter(_SWITCH, default=False),
            "nuslerp_flatten": Parameter(_SWITCH, default=True),
        },
    ),
    "multislerp": MethodRules(
        "optional",
        (1, None),
        {**_WEIGHT, "normalize_weights": Parameter(_SWITCH, default=True)},
        {"eps": "Remove it: no such constant is needed here."},
    ),
    "karcher": MethodRules(
        "ignored",
        parameters={
            "max_iter": Parameter(Kind(is_whole=True, low=0, high=10_000), default=10),
            "tol": Parameter(_POSITIVE, default=1e-5),
        },
    ),
    "nearswap": MethodRules("required", (1, 1), {"t": Parameter(_POSITIVE)}),
    "arcee_fusion": MethodRules("required", (1, 1)),
    "ram": MethodRules("required", (0, None), {"epsilon": _SMALL}),
    "ramplus_tl": MethodRules(
        "required",
        (0, None),
        {"r": Parameter(_NUMBER, default=0.1), "alpha": Parameter(_POSITIVE, default=0.2), "epsilon": _SMALL},
    ),
    "passthrough": MethodRules("ignored", (1, 1), {"scale": Parameter(_NUMBER, "input", 1.0)}),
}
"""Name → rules, for every method of mergekit."""


def find_rules(entry: Entry) -> MethodRules:
    """Return the rules of the merge method that a file names.

    Raises:
        UsageError: there is no such method.
    """
    name = entry.text()
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        guess = f"Did you mean {near[0]!r}? " if near else ""
        raise entry.place.error(f"there is no merge method {name!r}.", f"{guess}Use one of: {', '.join(METHODS)}.")
    return METHODS[name]
