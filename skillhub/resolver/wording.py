"""Words for packs, their versions and the reasons against them: short, however many there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from packaging.version import Version

from skillhub.resolver.listings import Bits, Listing, numbers_in

MAX_NAMED = 4
"""How many things of a kind a sentence names; of the others it tells the number."""

_MAX_TEXT = 160  # of what somebody else wrote: a requirement, the reason of a yank


def shortened(text: str) -> str:
    """Return somebody's words, cut where they are too many for a sentence."""
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


def enumerate_words(words: Sequence[str], *, most: int = MAX_NAMED, last: str = "and") -> str:
    """Return ``a, b and c``, or the first ones and the number of the others."""
    shown = list(words) if len(words) <= most else [*words[: most - 1], f"{len(words) - most + 1} others"]
    return f"{', '.join(shown[:-1])} {last} {shown[-1]}" if len(shown) > 1 else "".join(shown)


def versions_words(listing: Listing, bits: Bits) -> str:
    """Return which of a pack's releases are in a set: ``1.0``, ``1.2 and newer``, ``1.0, 1.2 to 1.4 and 2.0``."""
    count = len(listing.accepted)
    words = []
    for first, last in _runs(numbers_in(bits & listing.all)):
        low, high = listing.accepted[first].version, listing.accepted[last].version
        if first == last:
            words.append(str(low))
        elif last == count - 1:
            words.append(f"{low} and newer")
        elif first == 0:
            words.append(f"{high} and older")
        else:
            words.append(f"{low} to {high}")
    return enumerate_words(words, most=MAX_NAMED + 1)


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and last of numbers that follow each other."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


def covers_all(listing: Listing, bits: Bits) -> bool:
    """Say whether a set has every release of a pack, of which there are several."""
    return bits & listing.all == listing.all and len(listing.accepted) > 1


def subject_words(listing: Listing, bits: Bits) -> str:
    """Return a pack's releases as a subject: ``acme/a 1.2 and newer``, ``every acme/a``."""
    if covers_all(listing, bits):
        return f"every {listing.name}"
    return f"{listing.name} {versions_words(listing, bits)}".rstrip()


def is_one(listing: Listing, bits: Bits) -> bool:
    """Say whether the verb after :func:`subject_words` is in the singular."""
    chosen = bits & listing.all
    return chosen.bit_count() == 1 or chosen == listing.all


def reasons_words(reasons: Sequence[tuple[Version, str]], *, most: int = MAX_NAMED) -> str:
    """Return why releases are out: those with the same reason together.

    Args:
        reasons: versions, the newest first, and the end of a sentence about each.
        most: how many reasons are told.
    """
    together: dict[str, list[Version]] = {}
    for version, reason in reasons:
        together.setdefault(shortened(reason), []).append(version)
    told = [f"{_count_words(versions)} {reason}" for reason, versions in list(together.items())[:most]]
    left = sum(len(versions) for versions in list(together.values())[most:])
    if left:
        told.append(f"{left} older {'releases are' if left > 1 else 'release is'} out as well")
    return "; ".join(told)


def _count_words(versions: Sequence[Version]) -> str:
    """Return the newest of several versions and the number of the others; reasons are worded in the singular."""
    return str(versions[0]) if len(versions) == 1 else f"{versions[0]} (like {len(versions) - 1} more)"
