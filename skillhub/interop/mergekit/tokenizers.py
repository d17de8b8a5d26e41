"""Which vocabulary a merge's result has, and where the embeddings of single tokens come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from skillhub.interop.mergekit.models import ModelName, read_model
from skillhub.interop.mergekit.nodes import Entry, Place

TokenizerSource: TypeAlias = Literal["union", "base"] | ModelName


@dataclass(frozen=True)
class TokenRule:
    """Where the embedding of a token comes from in models that lack it, or in all.

    Attributes:
        model: from this model; None for zeros.
        token: under this token, where it is another.
        token_id: or under this number.
        force: whether models that have the token get this embedding too.
        place: where it stands.
    """

    model: ModelName | None
    token: str | None
    token_id: int | None
    force: bool
    place: Place


@dataclass(frozen=True)
class TokenizerChoice:
    """The vocabulary of the result.

    Attributes:
        source: of all models, of the base, or of one model.
        tokens: rules for single tokens; those that are missing are added.
        multiple: the embeddings get rows up to a multiple of this.
        place: where it stands.
    """

    source: TokenizerSource
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    multiple: int | None = None
    place: Place = field(default=Place("", 0, 0))


def read_tokenizer(fields: Mapping[str, Entry]) -> TokenizerChoice | None:
    """Read ``tokenizer_source`` or ``tokenizer``; None where there is neither.

    Raises:
        UsageError: there are both, or one of them is wrong.
    """
    if "tokenizer" not in fields:
        entry = fields.get("tokenizer_source")
        return TokenizerChoice(_source(entry), place=entry.place) if entry else None
    entry = fields["tokenizer"]
    if "tokenizer_source" in fields:
        raise entry.place.error("there is a tokenizer_source too.", "Write one of the two.")
    inner = entry.fields(("source", "tokens", "pad_to_multiple_of"))
    rules = inner["tokens"].mapping() if "tokens" in inner else {}
    return TokenizerChoice(
        _source(inner["source"]) if "source" in inner else "union",
        {token: _rule(rule) for token, rule in rules.items()},
        inner["pad_to_multiple_of"].count(1) if "pad_to_multiple_of" in inner else None,
        entry.place,
    )


def _source(entry: Entry) -> TokenizerSource:
    if entry.value == "union":
        return "union"
    if entry.value == "base":
        return "base"
    return read_model(entry)


def _rule(entry: Entry) -> TokenRule:
    fields = entry.fields(("source", "force"))
    force = fields["force"].switch() if "force" in fields else False
    if "source" not in fields:
        raise entry.place.error("no source is given.", "Name a model, or write 'source: {kind: zero}'.")
    source = fields["source"]
    if not isinstance(source.value, Mapping) or "kind" not in source.value:
        return TokenRule(read_model(source), None, None, force, entry.place)
    kind = source.value["kind"].text()
    if kind == "zero":
        source.fields(("kind",))
        return TokenRule(None, None, None, force, entry.place)
    if kind != "model_token":
        raise source.value["kind"].place.error(f"there is no kind {kind!r}.", "Write 'zero' or 'model_token'.")
    inner = source.fields(("kind", "model", "token", "token_id"))
    if "model" not in inner or ("token" in inner) == ("token_id" in inner):
        raise source.place.error("a model and either a token or a token_id are needed.", "Write both.")
    token = inner["token"].text() if "token" in inner else None
    number = inner["token_id"].count() if "token_id" in inner else None
    return TokenRule(read_model(inner["model"]), token, number, force, entry.place)
