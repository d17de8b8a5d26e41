"""What requires what: trees and paths over a lock. Nothing but the lock and the requirements is looked at."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skillhub.errors import NotFoundError, UsageError
from skillhub.lockfile import LOCAL, PEFT, Lock, LockedPack, relative_folder
from skillhub.names import PackName, Requirement, parse_pack_name

MAX_PATHS = 20
"""Paths that :func:`find_paths` returns at most."""

_MAX_STEPS = 20_000  # of the search for paths: without cycles it needs only as many as the paths are long

Neighbours = Mapping[str, tuple[LockedPack, ...]]
"""Locked pack (see :func:`key_of`) → the locked packs next to it."""


@dataclass(frozen=True)
class TreeRow:
    """One line of a tree.

    Attributes:
        depth: 0 for a root.
        name: the pack.
        version: what is locked; None for a requirement that the lock does not have.
        requirement: by which the environment asks for this pack, where it does and the line says so.
        repeated: the packs below this one are shown elsewhere in the tree.
        last: whether it is the last of its siblings; for each of its ancestors, from the root, and for the row itself.
            Roots stand side by side without lines, so theirs says nothing.
    """

    depth: int
    name: str
    version: str | None
    requirement: str | None
    repeated: bool
    last: tuple[bool, ...]


@dataclass(frozen=True)
class Paths:
    """Why a pack is there.

    Attributes:
        found: each begins with a requirement and ends with the pack, shortest first.
        complete: there are no others.
    """

    found: tuple[tuple[Requirement, tuple[LockedPack, ...]], ...]
    complete: bool


def key_of(pack: LockedPack) -> str:
    """Return what tells the packs of one lock apart."""
    return pack.name.lower()


def dependencies(lock: Lock) -> Neighbours:
    """Return the packs that each locked pack requires, sorted."""
    serving = _servers(lock)
    return {
        key_of(pack): _sorted(found for text in pack.dependencies if (found := serving(parse_pack_name(text))))
        for pack in lock.packs
    }


def dependents(lock: Lock) -> Neighbours:
    """Return the packs that require each locked pack, sorted."""
    found: dict[str, list[LockedPack]] = {key_of(pack): [] for pack in lock.packs}
    below = dependencies(lock)
    for pack in lock.packs:
        for required in below[key_of(pack)]:
            found[key_of(required)].append(pack)
    return {key: _sorted(packs) for key, packs in found.items()}


def _sorted(packs: Iterable[LockedPack]) -> tuple[LockedPack, ...]:
    return tuple(sorted({key_of(pack): pack for pack in packs}.values(), key=key_of))


def _servers(lock: Lock) -> Callable[[PackName], LockedPack | None]:
    """Return what tells which locked pack a requirement got: the one of that name, or a folder's of the bare name."""
    packs = {key_of(pack): pack for pack in lock.packs}
    folders = {key_of(pack): pack for pack in lock.packs if pack.registry == LOCAL}
    return lambda name: packs.get(str(name).lower()) or folders.get(name.name.lower())


def find_locked(lock: Lock, text: str) -> LockedPack:
    """Return a locked pack by its full or short name.

    Raises:
        NotFoundError: it is not locked; the hint has names that look alike.
        UsageError: several packs have this short name, or the text is no name.
    """
    wanted = parse_pack_name(text)
    found = [pack for pack in lock.packs if wanted.matches(pack.pack_name)]
    exact = [pack for pack in found if wanted == pack.pack_name]
    if len(found) > 1 and not exact:
        names = ", ".join(pack.name for pack in found)
        raise UsageError(f"Several locked packs are called {text}: {names}.", hint="Give the full name.")
    if not found:
        import difflib

        near = [name for name in _spellings(lock) if difflib.SequenceMatcher(None, text.lower(), name).ratio() > 0.7]
        hint = f"Did you mean {' or '.join(near[:3])}?" if near else "`skillhub tree` shows what is locked."
        raise NotFoundError(f"{text} is not in the lock.", hint=hint)
    return (exact or found)[0]


def _spellings(lock: Lock) -> list[str]:
    return sorted({key_of(pack) for pack in lock.packs})


def build_tree(
    lock: Lock,
    requirements: Sequence[Requirement],
    *,
    pack: LockedPack | None = None,
    invert: bool = False,
    depth: int | None = None,
) -> list[TreeRow]:
    """Return the lines of a tree, from its first root downward.

    Args:
        lock: what is locked.
        requirements: what the environment asks for.
        pack: show the tree of this pack only.
        invert: show below each pack those that require it, down to the requirements.
        depth: levels below the roots; None means all.
    """
    downward = dependencies(lock)
    below = dependents(lock) if invert else downward
    asked, missing = _requirements_by_pack(lock, requirements)
    if pack is not None:
        return _Walk(below, asked if invert else {}, depth).rows([pack])
    if invert:
        starts, missing = [one for one in lock.packs if not downward[key_of(one)]], []
    else:
        starts = [one for one in lock.packs if key_of(one) in asked]
    # a stale lock may hold packs that nothing asks for any more, and packs may require each other in a circle
    roots = [*_sorted(starts), *_not_below(starts, lock, below)]
    absent = [TreeRow(0, str(one.pack), None, one.text, False, (False,)) for one in missing]
    return [*_Walk(below, asked, depth).rows(roots), *absent]


def _requirements_by_pack(lock: Lock, requirements: Sequence[Requirement]) -> tuple[dict[str, str], list[Requirement]]:
    """Return locked pack → the texts of the requirements that got it, and the requirements that got none."""
    serving = _servers(lock)
    texts: dict[str, list[str]] = {}
    missing = []
    for one in requirements:
        found = serving(one.pack)
        if found is None:
            missing.append(one)
        else:
            texts.setdefault(key_of(found), []).append(one.text)
    return {key: ", ".join(parts) for key, parts in texts.items()}, missing


def _not_below(roots: Iterable[LockedPack], lock: Lock, below: Neighbours) -> list[LockedPack]:
    """Return packs from which, with the roots, every locked pack is reached."""
    shown = reached(map(key_of, roots), below)
    left = [one for one in _sorted(lock.packs) if key_of(one) not in shown]
    required = {key_of(one) for pack in left for one in below[key_of(pack)]}
    more = []
    for one in [one for one in left if key_of(one) not in required] + left:
        if key_of(one) not in shown:
            more.append(one)
            shown |= reached([key_of(one)], below)
    return more


def reached(keys: Iterable[str], below: Neighbours) -> set[str]:
    """Return the keys of the packs that one comes to from some, those included."""
    found, left = set(), deque(keys)
    while left:
        key = left.popleft()
        if key not in found:
            found.add(key)
            left.extend(key_of(one) for one in below[key])
    return found


class _Walk:
    """Walks a graph depth first, and goes below each pack once: there may be cycles, and very many ways to a pack."""

    def __init__(self, below: Neighbours, asked: Mapping[str, str], depth: int | None) -> None:
        self._below, self._asked = below, asked
        self._depth = depth
        self._shown: dict[str, int] = {}  # pack → levels that were shown below it

    def rows(self, roots: Sequence[LockedPack]) -> list[TreeRow]:
        rows = []
        stack: list[tuple[LockedPack, tuple[bool, ...]]] = [(root, (False,)) for root in reversed(roots)]
        while stack:
            pack, last = stack.pop()
            depth, key = len(last) - 1, key_of(pack)
            left = 1 if self._depth is None else self._depth - depth
            below = self._below[key]
            repeated = bool(below) and self._shown.get(key, 0) >= left > 0
            rows.append(TreeRow(depth, pack.name, pack.version, self._asked.get(key), repeated, last))
            if left > 0 and not repeated:
                self._shown[key] = left
                stack += [(one, (*last, number == 1)) for number, one in enumerate(reversed(below), 1)]
        return rows


def tree_lines(rows: Sequence[TreeRow], *, drawn: bool) -> list[str]:
    """Return a tree as text; ``drawn`` with box-drawing characters, else with ASCII only."""
    tee, corner, bar = ("├── ", "└── ", "│   ") if drawn else ("|-- ", "`-- ", "|   ")
    lines = []
    for row in rows:
        stem = "".join("    " if last else bar for last in row.last[1:-1])
        branch = (corner if row.last[-1] else tee) if row.depth else ""
        asked = f" ({row.requirement})" if row.requirement else ""
        version = f" {row.version}" if row.version else " is not locked"
        lines.append(f"{stem}{branch}{row.name}{version}{asked}{' (*)' if row.repeated else ''}")
    return lines


def find_paths(lock: Lock, requirements: Sequence[Requirement], pack: LockedPack, *, limit: int = MAX_PATHS) -> Paths:
    """Return the ways from the requirements to a pack, shortest first; none goes through a pack twice.

    Args:
        lock: what is locked.
        requirements: what the environment asks for.
        pack: the pack that is asked about.
        limit: paths at most.
    """
    above, serving = dependents(lock), _servers(lock)
    asked = [(one, root) for one in requirements if (root := serving(one.pack)) is not None]
    ends = {key_of(root) for _, root in asked}
    distance = _distances(ends, dependencies(lock))
    packs = {key_of(one): one for one in lock.packs}

    # best first: a path's length so far and the least that is missing; of equals the longer, so some are soon complete
    def queued(path: tuple[str, ...]) -> tuple[int, int, tuple[str, ...]]:
        return (len(path) + distance[path[0]], -len(path), path)

    found: list[tuple[Requirement, tuple[LockedPack, ...]]] = []
    queue = [queued((key_of(pack),))] if key_of(pack) in distance else []
    steps = 0
    while queue and steps < _MAX_STEPS and len(found) <= limit:
        steps += 1
        path = heapq.heappop(queue)[2]
        found += [(one, tuple(packs[key] for key in path)) for one, root in asked if key_of(root) == path[0]]
        for one in above[path[0]]:
            if key_of(one) in distance and key_of(one) not in path:
                heapq.heappush(queue, queued((key_of(one), *path)))
    found.sort(key=lambda pair: (len(pair[1]), [one.name for one in pair[1]], pair[0].text))
    return Paths(tuple(found[:limit]), complete=not queue and len(found) <= limit)


def _distances(starts: set[str], below: Neighbours) -> dict[str, int]:
    """Return how many steps each pack is from the nearest start; packs that none leads to are left out."""
    distance = dict.fromkeys(starts, 0)
    left = deque(sorted(starts))
    while left:
        key = left.popleft()
        for one in below[key]:
            if key_of(one) not in distance:
                distance[key_of(one)] = distance[key] + 1
                left.append(key_of(one))
    return distance


def frozen_requirement(pack: LockedPack, *, environment: Path, start: Path, at_commit: bool = False) -> str:
    """Return the requirement that gives exactly this locked pack.

    Args:
        pack: the pack.
        environment: folder of the environment that a folder's pack is locked relative to.
        start: what a folder is to be relative to: where the text will be read.
        at_commit: name the commit and not the version: the release may not be on main, such as one of a pull request.
    """
    if pack.registry == LOCAL:
        folder = relative_folder(environment / pack.repository, start)
        return folder if folder.startswith(".") else f"./{folder}"
    if pack.kind == PEFT:
        return f"peft:{pack.name}@{pack.commit or pack.version}"
    if at_commit and pack.commit:
        return f"{pack.name}@{pack.commit}"
    return f"{pack.name}=={pack.version}"
