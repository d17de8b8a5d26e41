"""Merge configurations: what one document of a file asks for, read and checked before any model is looked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skillhub.interop.mergekit.amounts import Settings, read_setting
from skillhub.interop.mergekit.models import ModelName, read_model
from skillhub.interop.mergekit.nodes import Entry, Place, read_documents
from skillhub.interop.mergekit.rules import MethodRules, find_rules
from skillhub.interop.mergekit.tokenizers import TokenizerChoice, read_tokenizer

DTYPE_TAGS: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
"""Name of a dtype in a file → tag of it in safetensors."""

_KEYS = "name merge_method base_model models slices modules parameters dtype out_dtype tokenizer tokenizer_source chat_template"
_REFUSED = {
    "out_path": "Give the folder after -o; to use a result in a later document, give this one a name.",
    "input_model_parameters": "Write the parameters under each of 'models'.",
    "experts": "This is a file of mergekit-moe, which is not supported.",
    "gate_mode": "This is a file of mergekit-moe, which is not supported.",
    "genome": "This is a file of mergekit-evolve, which is not supported.",
}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")


@dataclass(frozen=True)
class Source:
    """A model that takes part in a slice.

    Attributes:
        model: which.
        layers: its first layer and the one after its last; None for all it has.
        settings: parameters for it.
        place: where it stands.
    """

    model: ModelName
    layers: tuple[int, int] | None
    settings: Settings
    place: Place


@dataclass(frozen=True)
class Slice:
    """Layers of the result, one after another, and what they are merged from.

    Attributes:
        sources: the models.
        base: the base model of this slice.
        settings: parameters for it.
        place: where it stands.
    """

    sources: tuple[Source, ...]
    base: ModelName | None
    settings: Settings
    place: Place


@dataclass(frozen=True)
class Module:
    """A part of the result that has layers of its own, such as an encoder.

    Attributes:
        slices: its layers, in order; one where whole models are merged.
        settings: parameters for it.
        place: where it stands.
    """

    slices: tuple[Slice, ...]
    settings: Settings
    place: Place


@dataclass(frozen=True)
class Configuration:
    """One document of a file.

    Attributes:
        name: how later documents call its result.
        method: name of the merge method, in mergekit's words.
        rules: what the method asks for.
        base: the base model.
        modules: name → part of the result; the empty name stands for all of a model.
        settings: parameters for everything.
        dtype: tag of the dtype that the tensors are merged for.
        out_dtype: tag of the dtype that they are stored in.
        tokenizer: the vocabulary of the result; None keeps the base's (else the first model's).
        chat_template: a template, or the name of one.
        place: where it begins.
        text: the document.
    """

    name: str | None
    method: str
    rules: MethodRules
    base: ModelName | None
    modules: Mapping[str, Module]
    settings: Settings = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerChoice | None = None
    chat_template: str | None = None
    place: Place = field(default=Place("", 0, 0))
    text: str = ""

    @property
    def models(self) -> list[ModelName]:
        """Every model that is named, each once: the base first, then as they stand in the file."""
        named = [self.base] if self.base else []
        for part in self.modules.values():
            for one in part.slices:
                named += [source.model for source in one.sources]
        return list(dict.fromkeys(named))


def read_configurations(path: Path) -> list[Configuration]:
    """Read a file of merge configurations, in its order.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it is not YAML, or something in it is wrong or not supported; the error names its place.
        UnsafeContentError: the file is far longer or deeper than such files are.
    """
    return [_read_configuration(entry, text) for entry, text in read_documents(path)]


def _read_configuration(entry: Entry, text: str) -> Configuration:
    fields = entry.fields(_KEYS.split(), refused=_REFUSED)
    if "merge_method" not in fields:
        raise entry.place.error("no merge_method is given.", "Write one, such as 'merge_method: linear'.")
    rules = find_rules(fields["merge_method"])
    base = read_model(fields["base_model"]) if "base_model" in fields else None
    return Configuration(
        name=_read_name(fields["name"]) if "name" in fields else None,
        method=fields["merge_method"].text(),
        rules=rules,
        base=base,
        modules=_read_parts(entry.place, fields, rules, base),
        settings=_read_settings(fields, rules),
        dtype=_read_dtype(fields["dtype"]) if "dtype" in fields else None,
        out_dtype=_read_dtype(fields["out_dtype"]) if "out_dtype" in fields else None,
        tokenizer=read_tokenizer(fields),
        chat_template=fields["chat_template"].text() if "chat_template" in fields else None,
        place=entry.place,
        text=text,
    )


def _read_parts(
    place: Place, fields: Mapping[str, Entry], rules: MethodRules, base: ModelName | None
) -> Mapping[str, Module]:
    given = [key for key in ("models", "slices", "modules") if key in fields]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise place.error(f"one of models, slices and modules is needed, not {found}.", "Write one of the three.")
    if given != ["modules"]:
        return {"": _read_module(given[0], fields[given[0]], {}, rules, base)}
    modules = {}
    for name, entry in fields["modules"].mapping().items():
        inner = entry.fields(("models", "slices", "parameters"))
        kinds = [key for key in ("models", "slices") if key in inner]
        if len(kinds) != 1:
            raise entry.place.error("either models or slices is needed.", "Write one of the two.")
        modules[name] = _read_module(kinds[0], inner[kinds[0]], _read_settings(inner, rules), rules, base)
    if not modules:
        raise fields["modules"].place.error("no module is given.", "Name the model's parts.")
    return modules


def _read_module(kind: str, entry: Entry, settings: Settings, rules: MethodRules, base: ModelName | None) -> Module:
    if kind == "slices":
        slices = [_read_slice(item, rules, base) for item in entry.items()]
    else:
        sources = [_read_source(item, rules, sliced=False) for item in entry.items()]
        if base and base not in [source.model for source in sources]:
            sources.append(Source(base, None, {}, base.place))  # a base that is named always takes part, as in mergekit
        slices = [Slice(tuple(sources), base, {}, entry.place)]
    for one in slices:
        rules.check_models([source.model for source in one.sources], one.base, one.place)
    return Module(tuple(slices), settings, entry.place)


def _read_slice(entry: Entry, rules: MethodRules, base: ModelName | None) -> Slice:
    fields = entry.fields(
        ("sources", "base_model", "parameters"),
        refused={"residual_weight": "mergekit reads it and does not use it: remove it."},
    )
    if "sources" not in fields:
        raise entry.place.error("no sources are given.", "Write the models that the layers come from.")
    sources = tuple(_read_source(item, rules, sliced=True) for item in fields["sources"].items())
    lengths = {end - begin for begin, end in (source.layers for source in sources if source.layers)}
    if len(lengths) > 1:
        raise fields["sources"].place.error(
            "the sources have different numbers of layers.", "Give all of them ranges of one length."
        )
    own = read_model(fields["base_model"]) if "base_model" in fields else base
    return Slice(sources, own, _read_settings(fields, rules), entry.place)


def _read_source(entry: Entry, rules: MethodRules, *, sliced: bool) -> Source:
    keys = ("model", "layer_range", "parameters") if sliced else ("model", "parameters")
    fields = entry.fields(keys, refused={"layer_range": "Ranges of layers need 'slices' with 'sources'."})
    if "model" not in fields:
        raise entry.place.error("no model is named.", "Write 'model: …'.")
    if sliced and "layer_range" not in fields:
        raise entry.place.error(
            "no layer_range is given.", "Write its first layer and the one after its last: [0, 16]."
        )
    layers = _read_layers(fields["layer_range"]) if sliced else None
    return Source(read_model(fields["model"]), layers, _read_settings(fields, rules), entry.place)


def _read_layers(entry: Entry) -> tuple[int, int]:
    numbers = [item.count() for item in entry.items()]
    if len(numbers) != 2 or numbers[0] >= numbers[1]:
        raise entry.place.error(
            f"{numbers} is no range of layers.", "Write its first layer, from 0, and the one after its last: [0, 16]."
        )
    return numbers[0], numbers[1]


def _read_settings(fields: Mapping[str, Entry], rules: MethodRules) -> Settings:
    if "parameters" not in fields:
        return {}
    given = {name: entry for name, entry in fields["parameters"].mapping().items() if entry.value is not None}
    return {name: read_setting(entry, rules.parameter(name, entry).kind) for name, entry in given.items()}


def _read_dtype(entry: Entry) -> str:
    name = entry.text().removeprefix("torch.")
    if name not in DTYPE_TAGS:
        raise entry.place.error(f"{name!r} is no dtype of weights.", f"Use one of: {', '.join(DTYPE_TAGS)}.")
    return DTYPE_TAGS[name]


def _read_name(entry: Entry) -> str:
    name = entry.text()
    if not _NAME.fullmatch(name):
        raise entry.place.error(f"{name!r} is no name for a result.", "Use letters, digits, dots, '-' and '_'.")
    return name
