"""Names that are easily mistaken for others: a pack that is new here and looks like one that is known gets a warning.

Two owners' names look alike when they are a slip or two apart (a letter more, less or other, or two neighbours
swapped), or when they differ only in what the eye confuses: ``0`` and ``o``, ``1``, ``l`` and ``i``, ``rn`` and ``m``, ``-``, ``_`` and
``.``. The packs of one owner are all that owner's, and differ by a digit for good reasons; there only what no publisher
would do on purpose counts: names that differ in what the eye confuses, or by two swapped letters.
"""

from __future__ import annotations

from collections.abc import Iterable

from skillhub import settings
from skillhub.files import disk_errors
from skillhub.names import PackName, is_bare_name
from skillhub.progress import Notice

_LONG, _MIDDLING = 8, 4
_AFFIXED = 4

_CONFUSABLE = str.maketrans({"0": "o", "1": "l", "i": "l", "5": "s", "8": "b", "-": "", "_": "", ".": ""})


def near_misses(name: PackName, known: Iterable[PackName]) -> list[PackName]:
    """Return the packs among those known that a name is easily mistaken for, sorted; never the pack itself.

    Args:
        name: a pack, with its owner.
        known: packs with owners.
    """
    return sorted((other for other in known if _is_near(name, other)), key=lambda other: str(other).lower())


def _is_near(one: PackName, other: PackName) -> bool:
    if one.owner is None or other.owner is None or one == other:
        return False
    if one.owner.lower() == other.owner.lower():
        return _looks_same(one.name, other.name) or _is_swapped(one.name.lower(), other.name.lower())
    if _looks_same(one.owner, other.owner) or _is_slip(one.owner.lower(), other.owner.lower()):
        return True
    same_name = _looks_same(one.name, other.name) or _is_slip(one.name.lower(), other.name.lower())
    return same_name and _is_affixed(_skeleton(one.owner), _skeleton(other.owner))


def _skeleton(text: str) -> str:
    """Return what the eye keeps of a name."""
    return text.lower().translate(_CONFUSABLE).replace("rn", "m").replace("vv", "w")


def _looks_same(one: str, other: str) -> bool:
    return _skeleton(one) == _skeleton(other)


def _is_swapped(one: str, other: str) -> bool:
    """Say whether two neighbouring letters of one are swapped in the other."""
    places = [place for place, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs]
    if len(one) != len(other) or len(places) != 2 or places[1] != places[0] + 1:
        return False
    left, right = one[places[0]], one[places[1]]
    return (left + right).isalpha() and other[places[0]] == right and other[places[1]] == left


def _is_affixed(one: str, other: str) -> bool:
    """Say whether one is the other with something before or after it, as ``acme-ai`` is ``acme``."""
    short, long = sorted((one, other), key=len)
    return len(short) >= _AFFIXED and (long.startswith(short) or long.endswith(short))


def _is_slip(one: str, other: str) -> bool:
    """Say whether so few slips lead from one to the other that a person may not notice."""
    shorter = min(len(one), len(other))
    allowed = 2 if shorter >= _LONG else 1 if shorter >= _MIDDLING else 0
    return abs(len(one) - len(other)) <= allowed and _distance(one, other) <= allowed


def _distance(one: str, other: str) -> int:
    """Return how many letters have to be added, removed, replaced or swapped with a neighbour (optimal alignment)."""
    rows = [list(range(len(other) + 1))]
    for i, mine in enumerate(one, 1):
        row = [i]
        for j, theirs in enumerate(other, 1):
            best = min(rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + (mine != theirs))
            if i > 1 and j > 1 and mine == other[j - 2] and one[i - 2] == theirs:
                best = min(best, rows[i - 2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def seen_names() -> set[PackName]:
    """Return the packs whose releases this user has read from any registry, in lower case; nothing is read.

    Raises:
        DiskError: the state folder may not be looked at.
    """
    folder = settings.state_folder() / "registries"
    with disk_errors(folder):
        paths = list(folder.glob("*/*/*.jsonl"))
    return {PackName(path.parent.name, path.stem) for path in paths if is_bare_name(path.stem)}


def warn_of_near_misses(
    new: Iterable[PackName], known: Iterable[PackName], owners: Iterable[str], notice: Notice
) -> None:
    """Tell the user of packs that are new here and easily mistaken for others.

    Args:
        new: packs that are about to be installed; those that are known are passed over.
        known: packs that were met before, wherever: installed, locked or read about (:func:`seen_names`).
        owners: configured for short names: no pack of theirs need be known.
        notice: told a sentence for each.
    """
    known = list(dict.fromkeys(known))
    for name in new:
        if name.owner is None or name in known:
            continue
        others = near_misses(name, [*known, *(PackName(owner, name.name) for owner in owners)])
        if others:
            texts = " or ".join(dict.fromkeys(str(other).lower() for other in others[:3]))
            notice(f"{name} is new here and easily mistaken for {texts}: make sure that it is the one you mean.")
