"""How long the resolver takes, on graphs with names: what must be quick, and what must end.

    python benchmarks/resolving.py [--times 5] [--peer PYTHON]

`--peer` is an interpreter that has resolvelib (and packaging); without it the comparison is left out. Releases come from
memory. The time is all of `resolve`: for a graph without solution it has the explanation and the hints in it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEER_SECONDS = 20
"""The peer is stopped after this."""


@dataclass(frozen=True)
class Graph:
    """A problem.

    Attributes:
        packs: pack → version → requirements.
        wanted: what is asked for.
    """

    packs: Mapping[str, Mapping[str, Sequence[str]]]
    wanted: Sequence[str]


def random_graph(seed: int, *, most: int, width: tuple[int, int]) -> Graph:
    """Return 500 packs of 20 versions, of which 10 are asked for.

    Args:
        seed: the graph's.
        most: each release requires up to so many others.
        width: of the ranges of versions that are required.
    """
    rng = random.Random(seed)
    names = [f"acme/pack-{number:03}" for number in range(500)]

    def requirement(number: int) -> str:
        low = rng.randint(1, 20)
        return f"{names[number]}>={low},<{low + rng.randint(*width)}"

    packs = {
        name: {str(v): [requirement(n) for n in rng.sample(range(500), rng.randint(0, most))] for v in range(1, 21)}
        for name in names
    }
    return Graph(packs, rng.sample(names, 10))


def deep_graph(depth: int) -> Graph:
    """Return a ladder of packs, each of whose 10 versions takes several of the next two, and an end that nobody can have."""
    names = [f"acme/rung-{number:02}" for number in range(depth)]

    def requirements(number: int, version: int) -> list[str]:
        following = names[number + 1 : number + 3]
        return [f"{name}>={max(version - 2, 1)},<={version + 2}" for name in following] or ["acme/end>=2"]

    packs = {name: {str(v): requirements(n, v) for v in range(1, 11)} for n, name in enumerate(names)}
    packs["acme/end"] = {"1": [], "2": []}
    return Graph(packs, [names[0], "acme/end<2"])


def pigeon_graph(holes: int) -> Graph:
    """Return packs that must all be of different versions, of which there is one too few: no solver is quick at it."""
    names = [f"acme/pigeon-{number}" for number in range(holes + 1)]
    packs = {
        name: {str(hole): [f"{other}!={hole}" for other in names if other != name] for hole in range(holes)}
        for name in names
    }
    return Graph(packs, names)


def _graphs() -> Iterator[tuple[str, Graph]]:
    for seed in range(5):
        yield f"wide-500x20/{seed}", random_graph(seed, most=3, width=(8, 20))
    for seed in range(3):
        yield f"narrow-500x20/{seed}", random_graph(seed, most=3, width=(3, 12))
    for seed in range(3):
        yield f"dense-500x20/{seed}", random_graph(seed, most=4, width=(8, 20))
    for depth in (6, 8, 12, 20):
        yield f"deep-{depth}", deep_graph(depth)
    for seed in range(2):
        yield f"crowded-500x20/{seed}", random_graph(seed, most=6, width=(2, 6))
    for holes in (7, 9):
        yield f"pigeons-{holes}", pigeon_graph(holes)


@dataclass(frozen=True)
class Outcome:
    """What came of a graph: a word or two, the size of the explanation, and the median seconds of CPU and wall time."""

    words: str
    lines: int
    size: int
    cpu: float
    wall: float


def run(graph: Graph, times: int) -> Outcome:
    """Resolve a graph several times."""
    from skillhub.errors import SkillhubError
    from skillhub.names import parse_requirement
    from skillhub.resolver.problem import Problem
    from skillhub.resolver.solving import resolve

    indexes = _indexes(graph)
    problem = Problem(tuple(map(parse_requirement, graph.wanted)))
    cpu, wall, words, shown = [], [], "", ""
    for _ in range(times):
        started, burnt = time.perf_counter(), time.process_time()
        try:
            found = resolve(problem, lambda names: {name: indexes[name] for name in names if name in indexes})
            words = f"{len(found.picks)} packs"
        except SkillhubError as error:
            words, shown = f"exit {error.exit_code}", f"{error.message}\n{error.hint}"
        cpu.append(time.process_time() - burnt)
        wall.append(time.perf_counter() - started)
    return Outcome(words, len(shown.splitlines()), len(shown), statistics.median(cpu), statistics.median(wall))


def _indexes(graph: Graph) -> dict[Any, Any]:
    from packaging.version import Version

    from skillhub.names import parse_pack_name
    from skillhub.releases import Event, Release, ReleaseIndex

    def release(version: str, requires: Sequence[str]) -> Release:
        event = Event(schema=0, event="release", version=version, manifest="0" * 64, requires=list(requires))
        return Release(Version(version), event)

    return {
        parse_pack_name(name): ReleaseIndex(tuple(release(version, requires) for version, requires in versions.items()))
        for name, versions in graph.packs.items()
    }


def run_peer(python: str, graph: Graph) -> str:
    """Return how long resolvelib takes in its own process."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "graph.json"
        path.write_text(json.dumps({"packs": graph.packs, "wanted": graph.wanted}), encoding="utf-8")
        try:
            done = subprocess.run(
                [python, __file__, "--solve-with-peer", path],
                capture_output=True,
                text=True,
                timeout=PEER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"over {PEER_SECONDS}"
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def solve_with_peer(path: str) -> None:
    """Resolve a graph with resolvelib and print the seconds: what the process of :func:`run_peer` does."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version
    from resolvelib import AbstractProvider, BaseReporter, Resolver
    from resolvelib.resolvers import ResolutionImpossible, ResolutionTooDeep

    graph = json.loads(Path(path).read_text(encoding="utf-8"))
    parsed: dict[str, tuple[str, SpecifierSet]] = {}

    def parse(text: str) -> tuple[str, SpecifierSet]:
        if text not in parsed:
            at = min([place for place in map(text.find, "<>=!") if place >= 0], default=len(text))
            parsed[text] = text[:at], SpecifierSet(text[at:])
        return parsed[text]

    newest_first = {name: sorted(map(Version, versions), reverse=True) for name, versions in graph["packs"].items()}

    class Provider(AbstractProvider):  # type: ignore[misc]
        def identify(self, requirement_or_candidate: Any) -> Any:
            return requirement_or_candidate[0]

        def get_preference(
            self, identifier: Any, resolutions: Any, candidates: Any, information: Any, backtrack_causes: Any
        ) -> Any:
            causes = {one.requirement[0] for one in backtrack_causes}
            return identifier not in causes, sum(1 for _ in candidates[identifier])

        def find_matches(self, identifier: Any, requirements: Any, incompatibilities: Any) -> Any:
            wanted = [one[1] for one in requirements[identifier]]
            out = {one[1] for one in incompatibilities[identifier]}
            versions = newest_first.get(identifier, [])
            return [(identifier, v) for v in versions if v not in out and all(one.contains(v) for one in wanted)]

        def is_satisfied_by(self, requirement: Any, candidate: Any) -> bool:
            return requirement[1].contains(candidate[1])

        def get_dependencies(self, candidate: Any) -> Any:
            return [parse(text) for text in graph["packs"][candidate[0]][str(candidate[1])]]

    started = time.perf_counter()
    try:
        found = Resolver(Provider(), BaseReporter()).resolve(
            [parse(text) for text in graph["wanted"]], max_rounds=200_000
        )
        words = f"{len(found.mapping)} packs"
    except (ResolutionImpossible, ResolutionTooDeep) as error:
        words = "no solution" if isinstance(error, ResolutionImpossible) else "gave up"
    except RecursionError:  # it follows circles of packs without end when it puts its answer together
        words = "fails on a circle"
    print(f"{time.perf_counter() - started:.2f} ({words})")


def main() -> None:
    """Measure and write ``reports/resolving.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--peer", help="an interpreter that has resolvelib")
    parser.add_argument("--solve-with-peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.solve_with_peer:
        solve_with_peer(arguments.solve_with_peer)
        return
    rows = [_row(name, graph, arguments.times, arguments.peer) for name, graph in _graphs()]
    version = _version_of_peer(arguments.peer) if arguments.peer else "not measured"
    from measuring import write_report

    from skillhub.resolver.problem import DEFAULT_LIMIT

    lines = [
        f"Medians of {arguments.times} runs in one process, releases from memory, explanations and hints included; the limit "
        f"is the usual one, {DEFAULT_LIMIT:,} steps. The peer, resolvelib {version}, ran once, in its own process, for "
        f"{PEER_SECONDS} s at most. Where the load is above the number of cores, wall times are other processes' as well: "
        f"at the end it was {os.getloadavg()[0]:.1f}.",
        "",
        "`wide`, `narrow`, `dense` and `crowded` are 500 packs of 20 versions, 10 of them asked for: every release requires "
        "0-3 packs (`dense`: 0-4, `crowded`: 0-6), in ranges of 8-20 versions (`narrow`: 3-12, `crowded`: 2-6). `deep` is a "
        "ladder of so many packs without solution, `pigeons` the pigeonhole problem, for which no short proof is found.",
        "",
        "Where resolvelib fails on a circle, it had found an answer and followed packs that require each other without end.",
        "",
        "| Graph | Outcome | CPU s | Wall s | Lines | Bytes | resolvelib, s |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        "Held to: `wide` in 10 s, `deep` in 0.5 s, explanations under 40 lines, exit 13 at the limit.",
        "",
        "Command: `python benchmarks/resolving.py --peer PYTHON`",
    ]
    write_report("resolving", "Resolving", lines)


def _row(name: str, graph: Graph, times: int, peer: str | None) -> str:
    outcome = run(graph, times)
    other = run_peer(peer, graph) if peer else "-"
    size = f"{outcome.lines} | {outcome.size}" if outcome.lines else "- | -"
    row = f"| {name} | {outcome.words} | {outcome.cpu:.2f} | {outcome.wall:.2f} | {size} | {other} |"
    print(row, file=sys.stderr)
    return row


def _version_of_peer(python: str) -> str:
    command = [python, "-c", "import importlib.metadata as m; print(m.version('resolvelib'))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
