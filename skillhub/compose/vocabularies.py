"""The vocabulary of a merged model, and the rows of every model's embeddings in its order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skillhub.compose.modelsources import ModelSource
from skillhub.errors import UsageError
from skillhub.interop.mergekit.models import ModelName
from skillhub.interop.mergekit.tokenizers import TokenizerChoice, TokenRule
from skillhub.interop.modules import HERE_ALONE
from skillhub.progress import Notice
from skillhub.tensorreaders import Shape, TensorReader

_ZERO, _OWN_VALUES = -1, -2
_ROWS = 4096

Tokens = Mapping[str, int]
"""Token → its number."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The vocabulary of a merged model.

    Attributes:
        tokenizer: of transformers.
        tokens: of it.
        known: model → its own tokens that have a row in its embeddings.
        choice: what was asked for.
    """

    tokenizer: Any
    tokens: Tokens
    known: Mapping[ModelName, Tokens]
    choice: TokenizerChoice

    @property
    def rows(self) -> int:
        """Rows of the embeddings."""
        rows, multiple = self._used, self.choice.multiple or 1
        return -(-rows // multiple) * multiple

    @property
    def _used(self) -> int:
        return max(self.tokens.values(), default=-1) + 1

    def aligned(
        self, models: Sequence[ModelName], readers: Sequence[TensorReader], base: ModelName | None
    ) -> list[TensorReader]:
        """Return readers of tensors with a row for every token, in the order of this vocabulary.

        A token that a model lacks gets the row of the base; if that lacks it too, the row of the only model that has it, or the
        mean of those that do. A rule for the token comes before that. Rows beyond the vocabulary are the mean of all others.

        Args:
            models: the models.
            readers: of the tensor of each.
            base: the base model.

        Raises:
            UsageError: a rule names a token that the model it names lacks.
        """
        sizes = {model: reader.shape[0] for model, reader in zip(models, readers, strict=True)}
        rows = self.check_rules(sizes)
        owners = [np.full(self.rows, _ZERO) for _ in models]
        numbers = [np.zeros(self.rows, np.int64) for _ in models]
        means: dict[int, torch.Tensor] = {}
        for token, place in self.tokens.items():
            rule = self.choice.tokens.get(token)
            default = self._default(token, rule, list(models), rows, base)
            for index, model in enumerate(models):
                own = rows[model].get(token)
                if own is not None and not (rule and rule.force):
                    owners[index][place], numbers[index][place] = index, own
                elif isinstance(default, list):
                    owners[index][place] = _OWN_VALUES
                    means[place] = torch.stack([readers[one].read(row, row + 1)[0] for one, row in default]).mean(0)
                else:
                    owners[index][place], numbers[index][place] = default
        aligned = [AlignedReader(tuple(readers), *pair, dict(means)) for pair in zip(owners, numbers, strict=True)]
        for reader in aligned:
            self._fill(reader)
        return list(aligned)

    def check_rules(self, sizes: Mapping[ModelName, int]) -> dict[ModelName, Tokens]:
        """Check the rules for single tokens, and return which row each token has in the embeddings of each model.

        Args:
            sizes: model → rows of its embeddings.

        Raises:
            UsageError: a rule names a model that is not merged, or a token that it lacks.
        """
        rows: dict[ModelName, Tokens] = {
            model: {token: row for token, row in self.known[model].items() if row < size}
            for model, size in sizes.items()
        }
        for token, rule in self.choice.tokens.items():
            if rule.model is None:
                continue
            if rule.model not in sizes:
                raise rule.place.error(
                    f"{rule.model} does not take part in the embeddings.", "Name one of the models merged there."
                )
            found = rule.token_id if rule.token_id is not None else rows[rule.model].get(rule.token or token)
            if found is None or found >= sizes[rule.model]:
                what = f"number {rule.token_id}" if rule.token_id is not None else repr(rule.token or token)
                raise rule.place.error(f"{rule.model} has no token {what}.", "Name a token that it has.")
        return rows

    def _default(
        self,
        token: str,
        rule: TokenRule | None,
        models: Sequence[ModelName],
        rows: Mapping[ModelName, Tokens],
        base: ModelName | None,
    ) -> tuple[int, int] | list[tuple[int, int]]:
        """Return (index of a model, row) of what models get that lack a token; a list to take the mean of; −1 for zeros."""
        if rule is not None and rule.model is not None:
            row = rows[rule.model][rule.token or token] if rule.token_id is None else rule.token_id
            return models.index(rule.model), row
        if rule is not None:
            return _ZERO, 0
        having = [(index, rows[model][token]) for index, model in enumerate(models) if token in rows[model]]
        if not having:
            return _ZERO, 0
        if base is not None and base in models and token in rows[base]:
            return models.index(base), rows[base][token]
        return having[0] if len(having) == 1 else having

    def _fill(self, reader: AlignedReader) -> None:
        """Give the rows beyond the vocabulary the mean of all others (Hewitt 2021, "Initializing new word embeddings")."""
        used = self._used
        if used == self.rows:
            return
        total = torch.zeros(reader.shape[1:], dtype=torch.float64)
        for begin in range(0, used, _ROWS):
            total += reader.read(begin, min(begin + _ROWS, used)).double().sum(0)
        reader.owners[used:] = _OWN_VALUES
        reader.values.update(dict.fromkeys(range(used, self.rows), (total / used).float()))


@dataclass(frozen=True, eq=False)
class AlignedReader:
    """Reads rows of several tensors in another order.

    Attributes:
        readers: the tensors.
        owners: for every row the index of the tensor that it comes from; −1 for zeros, −2 for a row of its own.
        numbers: for every row its number there.
        values: row → its values, where it comes from no tensor.
    """

    readers: tuple[TensorReader, ...]
    owners: NDArray[np.int64]
    numbers: NDArray[np.int64]
    values: dict[int, torch.Tensor]

    @property
    def shape(self) -> Shape:
        """As many rows as there are tokens."""
        return len(self.owners), *self.readers[0].shape[1:]

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows."""
        end = min(end, len(self.owners))
        owners, numbers = self.owners[begin:end], self.numbers[begin:end]
        rows = torch.zeros(end - begin, *self.shape[1:])
        cuts = np.flatnonzero((np.diff(owners) != 0) | (np.diff(numbers) != 1)) + 1
        for first, last in zip([0, *cuts], [*cuts, len(owners)], strict=True):
            if first == last:
                continue
            owner, number = int(owners[first]), int(numbers[first])
            if owner >= 0:
                rows[first:last] = self.readers[owner].read(number, number + int(last - first))
            elif owner == _OWN_VALUES:
                for row in range(first, last):
                    rows[row] = self.values[begin + int(row)]
        return rows


def make_vocabulary(
    choice: TokenizerChoice,
    sources: Mapping[ModelName, ModelSource],
    base: ModelName,
    named: ModelSource | None,
    notice: Notice | None,
) -> Vocabulary:
    """Make the vocabulary of a merged model.

    Args:
        choice: what is asked for.
        sources: every model that takes part.
        base: the base model, or the first.
        named: the model that the choice names, where it names one.
        notice: told of models that have no tokenizer.

    Raises:
        UsageError: the base has no tokenizer, or one that has more tokens than embeddings and cannot be cut.
    """
    own = {model: _load(source, notice) for model, source in sources.items()}
    chosen = own[base] if named is None else _load(named, None)
    if chosen is None:
        raise choice.place.error(f"{named.model if named else base} has no tokenizer.", "Name a model that has one.")
    result = _cut(chosen, named or sources[base])
    if choice.source == "union":
        result = _union(result, [(own[model], _size(sources[model])) for model in sources])
    for token in choice.tokens:
        if token not in result.get_vocab():
            result.add_tokens(token)
    known = {}
    for model, tokenizer in own.items():
        tokens = (tokenizer or own[base] or result).get_vocab()
        known[model] = {token: row for token, row in tokens.items() if row < _size(sources[model])}
    return Vocabulary(result, result.get_vocab(), known, choice)


def _load(source: ModelSource, notice: Notice | None) -> Any:
    """Return a model's tokenizer; None where it has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.checkpoint.folder, **HERE_ALONE)
    except Exception as error:  # a stranger's files may make transformers raise anything
        if notice:
            notice(f"{source.model} has no tokenizer that can be read, so it is taken to have the base's ({error}).")
        return None


def _size(source: ModelSource) -> int:
    """Return how many tokens a model's config has room for."""
    config = source.checkpoint.config
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return 1 << 31


def _union(base: Any, others: Iterable[tuple[Any, int]]) -> Any:
    """Return the base's tokenizer with every other token, in the order of the models and of their numbers.

    Words of the others become added tokens: their own merges could contradict the base's.
    """
    known = set(base.get_vocab())
    words: list[str] = []
    added: dict[str, Any] = {}
    for tokenizer, size in others:
        if tokenizer is None:
            continue
        special = {token.content: token for row, token in tokenizer.added_tokens_decoder.items() if row < size}
        for token, settings in special.items():
            added.setdefault(token, settings)
        for token, row in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
            if row < size and token not in special and token not in known:
                known.add(token)
                words.append(token)
    result = _copied(base)
    result.add_tokens([word for word in words if word not in added])
    result.add_tokens(list(added.values()))
    return result


def _copied(tokenizer: Any) -> Any:
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, **HERE_ALONE)


def _cut(tokenizer: Any, source: ModelSource) -> Any:
    """Return a tokenizer without the tokens that the model has no embeddings for."""
    size = _size(source)
    beyond = {token for token, row in tokenizer.get_vocab().items() if row >= size}
    if not beyond:
        return tokenizer
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        model = content.get("model", {})
        if not isinstance(model.get("vocab"), dict):
            raise UsageError(
                f"The tokenizer of {source.model} has {len(beyond)} tokens that the model has no embeddings for.",
                hint="Name a model with a whole tokenizer as the tokenizer's source.",
            )
        model["vocab"] = {token: row for token, row in model["vocab"].items() if row < size}
        if "merges" in model:
            model["merges"] = [merge for merge in model["merges"] if not beyond & _merged(merge)]
        content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < size]
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder, **HERE_ALONE)


def _merged(merge: Any) -> set[str]:
    parts = merge.split(" ") if isinstance(merge, str) else list(merge)
    return {*parts, "".join(parts)}
