"""What ``skillhub fuse`` is told in texts and files: sizes, options of a method, weights and densities."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skillhub.errors import NotFoundError, UsageError
from skillhub.files import disk_errors, read_limited

_AMOUNTS_LIMIT = 1 << 20

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def read_size(text: str) -> int:
    """Read a number of bytes, such as ``5GB``.

    Raises:
        ValueError: it is none.
    """
    number = text.strip().upper().rstrip("KMGTB")
    unit = text.strip().upper()[len(number) :]
    try:
        size = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"{text!r} is not a size; write 5GB or 500MB.") from error
    if size < 1:
        raise ValueError(f"{text!r} is no size for a file.")
    return size


def read_options(texts: Sequence[str]) -> dict[str, float]:
    """Read ``NAME=VALUE`` of each option of a method.

    Raises:
        UsageError: one is not of that form, or is there twice.
    """
    read: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name in read:
            raise UsageError(f"The option {name!r} is there twice.", hint="Give it once.")
        switch = {"true": 1.0, "false": 0.0}.get(value.lower())
        try:
            read[name] = float(value) if switch is None else switch
        except ValueError as error:
            raise UsageError(f"{text!r} is not an option.", hint="Write NAME=NUMBER, such as lambda=0.5.") from error
    return read


def read_amounts(path: Path) -> dict[str, dict[str, Any]]:
    """Read a file (TOML or JSON) that says of each pack its ``weight`` and ``density``, which may differ from module to module.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it does not say that.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.", hint="Correct the path.", path=str(path))
    with disk_errors(path):
        data = read_limited(path, _AMOUNTS_LIMIT)
    try:
        text = data.decode("utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid: {error}", hint="Write TOML, or JSON in a file named .json.") from error
    right = isinstance(content, dict) and all(
        isinstance(entry, dict) and entry.keys() <= {"weight", "density"} for entry in content.values()
    )
    if not right:
        raise UsageError(
            f"{path} does not say what each pack weighs.",
            hint='Write a table for each pack as --pack names it: ["acme/math-pack"], and in it weight = 0.5, a list over the '
            "layers, or a table from patterns of module names to either; density likewise.",
        )
    return dict(content)


def choose_amounts(
    names: Sequence[str], weights: Sequence[float], densities: Sequence[float], path: Path | None
) -> dict[str, list[Any] | None]:
    """Return weights and densities, one per pack.

    Args:
        names: of the packs, as they were given.
        weights: one per pack, 1 where none was given.
        densities: none, one for all, or one per pack.
        path: of a file for :func:`read_amounts`.

    Raises:
        UsageError: they are of another number than the packs, or the file names others, or says what was said already.
        NotFoundError: there is no such file.
    """
    if len(densities) > 1 and len(densities) != len(names):
        raise UsageError(
            f"There are {len(names)} packs and {len(densities)} densities.", hint="Give one for all, or one for each."
        )
    chosen: list[Any] = list(weights)
    shares: list[Any] = [1.0] * len(names) if not densities else list(densities) * (len(names) // len(densities))
    read = read_amounts(path) if path else {}
    unknown = sorted(read.keys() - set(names))
    if unknown:
        raise UsageError(
            f"{path} weighs {unknown[0]}, which no --pack names.", hint="Write it as --pack has it, without the weight."
        )
    for number, name in enumerate(names):
        said = {"weight"} if weights[number] != 1 else set()
        said |= {"density"} if densities else set()
        for what in sorted(said & read.get(name, {}).keys()):
            raise UsageError(f"{path} has a {what} for {name}, and so has the command.", hint="Give one of them.")
        chosen[number] = read.get(name, {}).get("weight", chosen[number])
        shares[number] = read.get(name, {}).get("density", shares[number])
    return {"weights": chosen, "densities": shares}
