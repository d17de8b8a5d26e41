"""What the difference between two base models is, in one sentence."""

from __future__ import annotations

import base64
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np

from skillhub.bfloat16 import to_float32
from skillhub.canonical import canonical_names, is_vocabulary_tensor
from skillhub.fingerprint import BaseRecord, TensorRecord

SHOWN = 3
"""How many names a sentence shows."""

RELATED = 0.5
"""Median relative distance of sketches below which two models are taken for relatives; unrelated ones are near √2."""

_FOREIGN_SHARE = 0.2
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")

Records = Mapping[str, TensorRecord]


def explain_mismatch(expected: BaseRecord, actual: BaseRecord) -> str:
    """Return one sentence on how ``actual`` differs from the ``expected`` base.

    It is the same base / the same tensors under other names / permuted layers / another architecture / a resized
    vocabulary / tensors missing or added / N tensors that differ, with a guess from the sketches whether it is a
    fine-tune.
    """
    if expected.fingerprint == actual.fingerprint:
        return "It is the same base."
    wanted = {record.name: record for record in expected.tensors}
    found = {record.name: record for record in actual.tensors}
    for explain in (_renamed, _permuted, _another_architecture, _resized_vocabulary, _missing_or_added):
        if sentence := explain(wanted, found):
            break
    else:
        sentence = f"The same architecture, but {_differing(wanted, found)}"
    return sentence if sentence.endswith((".", "?")) else f"{sentence}."


def _renamed(wanted: Records, found: Records) -> str:
    """The same tensors, names apart."""
    if wanted.keys() == found.keys() or Counter(map(_content, wanted.values())) != Counter(
        map(_content, found.values())
    ):
        return ""
    for outer, inner, text in ((found, wanted, "behind"), (wanted, found, "without")):
        prefix = os.path.commonprefix(list(outer)).rpartition(".")[0] + "."  # noqa: RUF071 (cut at a dot)
        bare = canonical_names({name.removeprefix(prefix): record.shape for name, record in outer.items()})
        if set(bare.values()) == inner.keys():
            return f"The same tensors, but their names stand {text} the prefix {prefix!r}."
    name = min(wanted.keys() - found.keys())
    twins = [other for other in sorted(found) if _content(found[other]) == _content(wanted[name])]
    return f"The same tensors under other names, such as {twins[0]} for {name}."


def _permuted(wanted: Records, found: Records) -> str:
    """The same names and shapes, but a layer holds the weights of another."""
    if _shapes(wanted) != _shapes(found):
        return ""
    before = _layers(wanted)
    originals = {content: layer for layer, content in sorted(before.items(), reverse=True)}
    moved = []
    for layer, content in sorted(_layers(found).items()):
        original = originals.get(content)
        if original is None:
            return ""
        if before[layer] != content:
            moved.append(f"{layer[0]}{layer[1]} holds the weights of {original[0]}{original[1]}")
    if not moved:
        return ""
    more = f" and {len(moved) - SHOWN} more" if len(moved) > SHOWN else ""
    return f"The same architecture with layers permuted or repeated: {', '.join(moved[:SHOWN])}{more}."


def _another_architecture(wanted: Records, found: Records) -> str:
    """Too many tensors are missing, new or of another shape to be the same kind of model."""
    missing, added, reshaped = _structure(wanted, found)
    other_shape = [name for name in reshaped if not is_vocabulary_tensor(name)]
    foreign = len(missing) + len(added) + len(other_shape)
    if foreign <= _FOREIGN_SHARE * max(len(wanted), len(found)):
        return ""
    facts = []
    if missing:
        facts.append(f"{len(missing)} of {_count(len(wanted), 'expected tensor')} are missing ({_shown(missing)})")
    if added:
        facts.append(f"{len(added)} are unknown ({_shown(added)})")
    if other_shape:
        name = other_shape[0]
        shapes = f"{name} is {list(found[name].shape)} instead of {list(wanted[name].shape)}"
        facts.append(f"{len(other_shape)} have another shape ({shapes})")
    return f"Another architecture: {', '.join(facts)}."


def _resized_vocabulary(wanted: Records, found: Records) -> str:
    """Embeddings and heads have other numbers of rows, by one and the same difference."""
    missing, added, reshaped = _structure(wanted, found)
    if missing or added or not reshaped or not all(is_vocabulary_tensor(name) for name in reshaped):
        return ""
    steps = {found[name].shape[0] - wanted[name].shape[0] for name in reshaped if found[name].shape}
    columns = {found[name].shape[1:] == wanted[name].shape[1:] for name in reshaped}
    if len(steps) != 1 or columns != {True}:
        return ""
    before, after = wanted[reshaped[0]].shape[0], found[reshaped[0]].shape[0]
    step = steps.pop()
    return f"The same architecture with its vocabulary resized by {step:+d} (from {before} to {after} rows){_also(wanted, found)}"


def _missing_or_added(wanted: Records, found: Records) -> str:
    """A few tensors more or less, or of another shape."""
    missing, added, reshaped = _structure(wanted, found)
    facts = [
        f"{_count(len(names), 'tensor')} {text} ({_shown(names)})"
        for names, text in ((missing, "missing"), (added, "more"), (reshaped, "of another shape"))
        if names
    ]
    if not facts:
        return ""
    return f"The same architecture with {' and '.join(facts)}{_also(wanted, found)}"


def _also(wanted: Records, found: Records) -> str:
    differing = _differing(wanted, found)
    return f"; {differing}" if differing else ""


def _differing(wanted: Records, found: Records) -> str:
    """Describe the tensors of equal name and shape whose content differs, if any."""
    shared = [name for name in sorted(wanted.keys() & found.keys()) if wanted[name].shape == found[name].shape]
    names = [name for name in shared if _content(wanted[name]) != _content(found[name])]
    if not names:
        return ""
    kinds = [name for name in names if wanted[name].kind != found[name].kind]
    if kinds:
        was, now = wanted[kinds[0]].kind, found[kinds[0]].kind
        guess = f"{len(kinds)} are stored as {now} instead of {was}: quantized?"
    else:
        guess = _relation(wanted, found, names)
    verb = "differs" if len(names) == 1 else "differ"
    return f"{len(names)} of {_count(len(shared), 'tensor')} {verb} ({_shown(names)}): {guess}"


def _relation(wanted: Records, found: Records, names: list[str]) -> str:
    """Guess from the sketches whether the differing tensors come from the same training run."""
    distances = []
    for name in names:
        before, after = _values(wanted[name]), _values(found[name])
        norm = float(np.linalg.norm(before))
        if before.size == after.size and norm > 0:
            distances.append(float(np.linalg.norm(after - before)) / norm)
    if not distances:
        return "whether they are related cannot be seen"
    return "a fine-tune of it?" if np.median(distances) < RELATED else "its weights are unrelated"


def _values(record: TensorRecord) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    bits = np.frombuffer(base64.b64decode(record.sketch), "<u2")
    return np.nan_to_num(to_float32(bits).astype(np.float64), posinf=0.0, neginf=0.0)


def _structure(wanted: Records, found: Records) -> tuple[list[str], list[str], list[str]]:
    """Return the sorted names that are missing, added and of another shape."""
    shared = sorted(wanted.keys() & found.keys())
    reshaped = [name for name in shared if wanted[name].shape != found[name].shape]
    return sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys()), reshaped


def _layers(records: Records) -> dict[tuple[str, int], frozenset[tuple[str, object]]]:
    """Return the content of every numbered layer, by (prefix with dot, number)."""
    layers = defaultdict(set)
    for name, record in records.items():
        if match := _LAYER.search(name):
            layers[name[: match.start()], int(match.group())].add((name[match.end() :], _content(record)))
    return {layer: frozenset(content) for layer, content in layers.items()}


def _shapes(records: Records) -> dict[str, tuple[int, ...]]:
    return {name: record.shape for name, record in records.items()}


def _content(record: TensorRecord) -> tuple[tuple[int, ...], str, str]:
    return record.shape, record.kind, record.digest


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
