"""The files beside the weights of a merged model: its config, its tokenizer, its chat template."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skillhub.basemodel import CONFIG_FILE, read_config, read_object
from skillhub.canonical import HEADS
from skillhub.compose.companions import GENERATION_FILE, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILES
from skillhub.compose.layerplans import LayerOrigin, layer_origins, stack_lengths
from skillhub.compose.modelmerges import MergedTensor, ModelMerge
from skillhub.compose.modelsources import ModelSource
from skillhub.compose.vocabularies import Vocabulary
from skillhub.interop.mergekit.configurations import DTYPE_TAGS

_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_TOKEN_SUFFIX = "_token_id"

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
}
"""Chat templates that a file may name."""


def write_companions(folder: Path, merge: ModelMerge, tensors: Sequence[MergedTensor]) -> None:
    """Write everything but weights and card into the folder of a merged model.

    Config, tokenizer, generation settings and code are the donor's (the base's, else the first model's). The config follows what
    changed: the number of layers and what it says of each, dtype, vocabulary, token numbers, tied heads.

    Args:
        folder: of the result.
        merge: what is merged.
        tensors: of the result.

    Raises:
        UsageError: a chat template is asked for that is none.
    """
    checkpoint = merge.donor.checkpoint
    for path in checkpoint.companions():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.folder / path, folder / path)
    if (folder / CONFIG_FILE).is_file():
        _write_json(folder / CONFIG_FILE, adapted_config(merge, tensors))
    if merge.vocabulary:
        _write_tokenizer(folder, merge, merge.vocabulary)
    if merge.configuration.chat_template:
        _write_template(folder, chosen_template(merge))


def adapted_config(merge: ModelMerge, tensors: Sequence[MergedTensor]) -> dict[str, Any]:
    """Return the donor's config as it fits the result."""
    config = dict(read_config(merge.donor.checkpoint.folder))
    text = config.get("text_config")
    if isinstance(text, dict):
        config["text_config"] = text = dict(text)
    parts = [config, text] if isinstance(text, dict) else [config]
    _set_dtype(parts, merge)
    origins = layer_origins(merge.configuration)
    if origins:
        for part in parts:
            _set_layers(part, merge, origins)
    if merge.vocabulary:
        for part in parts:
            if "vocab_size" in part:
                part["vocab_size"] = merge.vocabulary.rows
            _renumber(part, merge, merge.vocabulary)
    heads = [tensor for tensor in tensors if tensor.planned.name.endswith(HEADS)]
    if heads and config.get("tie_word_embeddings", True):
        config["tie_word_embeddings"] = False
    return config


def _set_dtype(parts: Sequence[dict[str, Any]], merge: ModelMerge) -> None:
    tag = merge.configuration.out_dtype or merge.configuration.dtype
    names = {own: name for name, own in DTYPE_TAGS.items()}
    if tag is None:
        return
    for part in parts:
        for key in ("dtype", "torch_dtype"):
            if key in part:
                part[key] = names[tag]
    if not {"dtype", "torch_dtype"} & set(parts[0]):
        parts[0]["dtype"] = names[tag]


def _set_layers(part: dict[str, Any], merge: ModelMerge, origins: Sequence[LayerOrigin]) -> None:
    """Let a config count the layers of the result; what it lists for each layer comes from where that layer does."""
    before = sum(stack_lengths(merge.donor.shapes).values())
    for key in _LAYER_COUNTS:
        if part.get(key) == before:
            part[key] = len(origins)
    for key, value in part.items():
        if isinstance(value, list) and len(value) == before and before > 1:
            part[key] = [_listed(merge, key, origin, value) for origin in origins]


def _listed(merge: ModelMerge, key: str, origin: LayerOrigin, default: Sequence[Any]) -> Any:
    """Return what a model's config lists for one of its layers; the donor's entry where its own lists none."""
    config = read_config(merge.sources[origin.model].checkpoint.folder)
    for part in (config, config.get("text_config")):
        value = part.get(key) if isinstance(part, dict) else None
        if isinstance(value, list) and origin.number < len(value):
            return value[origin.number]
    return default[min(origin.number, len(default) - 1)]


def _renumber(part: dict[str, Any], merge: ModelMerge, vocabulary: Vocabulary) -> None:
    """Give the tokens that a config names by number their new numbers, where the result has them."""
    names = {number: token for token, number in vocabulary.known[merge.donor.model].items()}

    def new(number: Any) -> Any:
        return vocabulary.tokens.get(names.get(number, ""), number) if isinstance(number, int) else number

    for key, value in part.items():
        if key.endswith(_TOKEN_SUFFIX) and value is not None and not isinstance(value, bool):
            part[key] = [new(one) for one in value] if isinstance(value, list) else new(value)


def _write_tokenizer(folder: Path, merge: ModelMerge, vocabulary: Vocabulary) -> None:
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    donor = merge.donor
    try:
        vocabulary.tokenizer.save_pretrained(folder)
    except Exception as error:  # a stranger's settings may make transformers raise anything
        raise donor.model.place.error(
            f"its tokenizer cannot be saved: {error}.", "Fetch or save the model again."
        ) from error
    path = folder / GENERATION_FILE
    settings = read_object(donor.checkpoint.folder / GENERATION_FILE)
    if settings is not None:
        _renumber(settings, merge, vocabulary)
        _write_json(path, settings)


def chosen_template(merge: ModelMerge) -> str:
    """Return the chat template that a file asks for: the one of most models for ``auto``, one of ours by name, or the text itself.

    Raises:
        UsageError: it is none of these.
    """
    asked = merge.configuration.chat_template or ""
    place = merge.configuration.place.key("chat_template", merge.configuration.place.line)
    if asked == "auto":
        found = [template for source in merge.sources.values() if (template := read_template(source))]
        if not found:
            raise place.error("none of the models has a chat template.", "Remove it, or write the template itself.")
        return Counter(found).most_common(1)[0][0]
    if asked in TEMPLATES:
        return TEMPLATES[asked]
    if "{" not in asked:
        known = ", ".join(TEMPLATES)
        raise place.error(
            f"there is no chat template {asked!r}.", f"Write auto, {known}, or a template of Jinja itself."
        )
    return asked


def read_template(source: ModelSource) -> str | None:
    """Return a model's chat template; None where it has none.

    Raises:
        UsageError, IntegrityError: the file that would hold it is damaged.
    """
    folder = source.checkpoint.folder
    path = folder / TEMPLATE_FILE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise source.model.place.error(f"{path} is not UTF-8 text.", "Fetch or save the model again.") from error
    template = (read_object(folder / TOKENIZER_CONFIG_FILE) or {}).get("chat_template")
    if isinstance(template, list):
        named = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template.strip() if isinstance(template, str) and template.strip() else None


def _write_template(folder: Path, template: str) -> None:
    (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    path = folder / TOKENIZER_CONFIG_FILE
    settings = read_object(path)
    if settings is not None:
        _write_json(path, {key: value for key, value in settings.items() if key != "chat_template"})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
