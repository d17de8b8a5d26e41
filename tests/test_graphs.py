"""Trees and paths over a lock: by hand, and against a plain recursive search on random graphs with cycles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillhub.errors import NotFoundError, UsageError
from skillhub.graphs import (
    build_tree,
    dependencies,
    dependents,
    find_locked,
    find_paths,
    frozen_requirement,
    tree_lines,
)
from skillhub.lockfile import LOCAL, Lock, LockedPack, write_lock
from skillhub.names import Requirement, parse_requirement
from tests.support.commands import Shell
from tests.test_cli import on_a_terminal

DIGEST = "ab" * 32
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def pack(name: str, *needs: str, version: str = "1.0.0", **changes: str) -> LockedPack:
    fields = {"registry": "hub", "repository": name, **changes}
    return LockedPack(name=name, version=version, manifest=DIGEST, dependencies=list(needs), files=[], **fields)


def lock_of(*packs: LockedPack) -> Lock:
    return Lock("0" * 64, (), packs)


def wants(*texts: str) -> list[Requirement]:
    return [parse_requirement(text) for text in texts]


SUITE = lock_of(
    pack("acme/suite", "acme/math", "acme/chat"),
    pack("acme/math", "acme/shared", version="1.2.0"),
    pack("acme/chat", "Acme/Shared"),
    pack("acme/shared", "acme/words", version="2.0"),
    pack("acme/words"),
)


def lines(lock: Lock, *texts: str, drawn: bool = False, root: str | None = None, **options: object) -> list[str]:
    found = find_locked(lock, root) if root else None
    return tree_lines(build_tree(lock, wants(*texts), pack=found, **options), drawn=drawn)  # type: ignore[arg-type]


def test_a_tree_goes_below_each_pack_once() -> None:
    assert lines(SUITE, "acme/suite>=1", "Acme/Words") == [
        "acme/suite 1.0.0 (acme/suite>=1)",
        "|-- acme/chat 1.0.0",
        "|   `-- acme/shared 2.0",
        "|       `-- acme/words 1.0.0 (Acme/Words)",
        "`-- acme/math 1.2.0",
        "    `-- acme/shared 2.0 (*)",
        "acme/words 1.0.0 (Acme/Words)",
    ]
    assert lines(SUITE, "acme/suite", drawn=True)[1:3] == ["├── acme/chat 1.0.0", "│   └── acme/shared 2.0"]


def test_a_tree_of_one_pack_and_of_few_levels() -> None:
    assert lines(SUITE, "acme/suite", root="math") == [
        "acme/math 1.2.0",
        "`-- acme/shared 2.0",
        "    `-- acme/words 1.0.0",
    ]
    assert lines(SUITE, "acme/suite", depth=1) == [
        "acme/suite 1.0.0 (acme/suite)",
        "|-- acme/chat 1.0.0",
        "`-- acme/math 1.2.0",
    ]
    assert lines(SUITE, "acme/suite", depth=0) == ["acme/suite 1.0.0 (acme/suite)"]


def test_an_inverted_tree_ends_at_requirements() -> None:
    assert lines(SUITE, "acme/suite", invert=True) == [
        "acme/words 1.0.0",
        "`-- acme/shared 2.0",
        "    |-- acme/chat 1.0.0",
        "    |   `-- acme/suite 1.0.0 (acme/suite)",
        "    `-- acme/math 1.2.0",
        "        `-- acme/suite 1.0.0 (acme/suite)",
    ]
    assert lines(SUITE, "acme/suite", root="acme/math", invert=True) == [
        "acme/math 1.2.0",
        "`-- acme/suite 1.0.0 (acme/suite)",
    ]


def test_a_level_that_was_cut_off_is_shown_where_there_is_room() -> None:
    lock = lock_of(pack("o/a", "o/b"), pack("o/b", "o/c"), pack("o/c", "o/d"), pack("o/d"))
    assert lines(lock, "o/a", "o/b", depth=2)[2:] == [
        "    `-- o/c 1.0.0",
        "o/b 1.0.0 (o/b)",
        "`-- o/c 1.0.0",
        "    `-- o/d 1.0.0",
    ]


def test_a_stale_lock_hides_nothing() -> None:
    lock = lock_of(pack("o/a", "o/b"), pack("o/b", "o/a"), pack("o/c", "o/a"))
    assert lines(lock, "o/new>=1") == [
        "o/c 1.0.0",
        "`-- o/a 1.0.0",
        "    `-- o/b 1.0.0",
        "        `-- o/a 1.0.0 (*)",
        "o/new is not locked (o/new>=1)",
    ]
    assert lines(lock_of(pack("o/a", "o/b"), pack("o/b", "o/a")), invert=True)[0] == "o/a 1.0.0"


def test_a_folders_pack_serves_its_bare_name() -> None:
    lock = lock_of(pack("own", registry=LOCAL, repository="own"), pack("acme/suite", "acme/own"))
    assert [one.name for one in dependencies(lock)["acme/suite"]] == ["own"]
    found = find_paths(lock, wants("acme/suite", "acme/own"), find_locked(lock, "own")).found
    assert [(asked.text, [one.name for one in packs]) for asked, packs in found] == [
        ("acme/own", ["own"]),
        ("acme/suite", ["acme/suite", "own"]),
    ]


def test_a_pack_that_is_not_locked_is_said_with_names_that_look_alike() -> None:
    with pytest.raises(NotFoundError) as caught:
        find_locked(SUITE, "acme/shraed")
    assert "acme/shared" in caught.value.hint
    with pytest.raises(NotFoundError) as caught:
        find_locked(SUITE, "other/thing")
    assert "skillhub tree" in caught.value.hint
    with pytest.raises(UsageError, match="a/x, b/x"):
        find_locked(lock_of(pack("a/x"), pack("b/x")), "x")


def test_paths_are_capped_and_quickly_found_in_a_lattice() -> None:
    width, height = 4, 30
    names = [[f"o/p{level}-{number}" for number in range(width)] for level in range(height)]
    packs = [
        pack(name, *(names[level + 1] if level + 1 < height else [])) for level, row in enumerate(names) for name in row
    ]
    lock = lock_of(*packs)
    paths = find_paths(lock, wants(names[0][0]), find_locked(lock, names[-1][0]))
    assert len(paths.found) == 20 and not paths.complete
    assert all(len(one) == height for _, one in paths.found)
    assert len(build_tree(lock, wants(names[0][0]))) < width * width * height


@st.composite
def locks(draw: st.DrawFn) -> tuple[Lock, list[Requirement]]:
    names = [f"o/{letter}" for letter in "abcdef"[: draw(st.integers(1, 6))]]
    some = st.lists(st.sampled_from(names), unique=True, max_size=3)
    return lock_of(*(pack(name, *draw(some)) for name in names)), wants(*draw(some))


def every_path(lock: Lock, requirements: list[Requirement], goal: str) -> set[tuple[str, ...]]:
    needs = {one.name: one.dependencies for one in lock.packs}

    def below(path: tuple[str, ...]) -> set[tuple[str, ...]]:
        here = {path} if path[-1] == goal else set()
        return here.union(*(below((*path, one)) for one in needs[path[-1]] if one not in path))

    return {(one.text, *path) for one in requirements for path in below((one.text,))}


@given(locks())
def test_paths_are_those_of_a_plain_search(case: tuple[Lock, list[Requirement]]) -> None:
    lock, requirements = case
    for goal in lock.packs:
        expected = every_path(lock, requirements, goal.name)
        paths = find_paths(lock, requirements, goal, limit=1000)
        found = [(asked.text, *(one.name for one in packs)) for asked, packs in paths.found]
        assert set(found) == expected and len(found) == len(expected) and paths.complete
        assert [len(one) for one in found] == sorted(map(len, found))
        fewer = find_paths(lock, requirements, goal, limit=2)
        assert len(fewer.found) == min(2, len(expected)) and fewer.complete == (len(expected) <= 2)


@given(locks(), st.booleans(), st.none() | st.integers(0, 4))
def test_a_tree_has_every_edge_and_ends(case: tuple[Lock, list[Requirement]], invert: bool, depth: int | None) -> None:
    lock, requirements = case
    rows = build_tree(lock, requirements, invert=invert, depth=depth)
    edges, above = set(), list[str]()
    for row in rows:
        above = [*above[: row.depth], row.name]
        assert len(above) == row.depth + 1 and len(row.last) == row.depth + 1
        assert depth is None or row.depth <= depth
        if row.depth:
            edges.add((above[-2], row.name))
    graph = dependents(lock) if invert else dependencies(lock)
    all_edges = {(name, one.name) for name, below in graph.items() for one in below}
    assert edges == all_edges if depth is None else edges <= all_edges
    assert {one.name for one in lock.packs} <= {row.name for row in rows} or depth is not None


@pytest.mark.parametrize(
    ("locked", "text"),
    [
        (pack("acme/math", version="1.2.0"), "acme/math==1.2.0"),
        (pack("acme/lora", version=COMMIT[:12], kind="peft", commit=COMMIT), f"peft:acme/lora@{COMMIT}"),
        (pack("own", registry=LOCAL, repository="packs/own"), "../project/packs/own"),
        (pack("own", registry=LOCAL, repository="../elsewhere/own"), "./own"),
    ],
)
def test_a_frozen_requirement_is_exact(locked: LockedPack, text: str, tmp_path: Path) -> None:
    project, start = tmp_path / "project", tmp_path / "elsewhere"
    assert frozen_requirement(locked, environment=project, start=start) == text


def test_a_release_that_may_not_be_on_main_is_frozen_at_its_commit(tmp_path: Path) -> None:
    (tmp_path / "skillhub.toml").write_text('requirements = ["acme/math@refs/pr/3", "acme/chat"]', encoding="utf-8")
    write_lock(tmp_path / "skillhub.lock", lock_of(pack("acme/math", commit=COMMIT), pack("acme/chat", commit=COMMIT)))
    assert Shell(tmp_path).succeed("freeze").splitlines() == ["acme/chat==1.0.0", f"acme/math@{COMMIT}"]


@pytest.fixture
def project(tmp_path: Path) -> Shell:
    """A project with a lock, on a machine that reaches no registry."""
    text = 'requirements = ["acme/suite>=1", "./own", "peft:acme/lora"]\n'
    (tmp_path / "skillhub.toml").write_text(text, encoding="utf-8")
    extra = [
        pack("own", registry=LOCAL, repository="own"),
        pack("acme/lora", version=COMMIT[:12], kind="peft", commit=COMMIT),
    ]
    write_lock(tmp_path / "skillhub.lock", lock_of(*SUITE.packs, *extra))
    return Shell(tmp_path)


def test_tree_as_a_process(project: Shell) -> None:
    shown = project.succeed("tree").splitlines()
    assert shown[0] == "acme/lora 0123456789ab (peft:acme/lora)"
    assert "`-- acme/math 1.2.0" in shown and shown[-1] == "own 1.0.0 (./own)"
    rows = project.json("tree", "--invert", "words", "--depth", "1")["tree"]
    assert [(row["depth"], row["name"], row["version"]) for row in rows] == [
        (0, "acme/words", "1.0.0"),
        (1, "acme/shared", "2.0"),
    ]
    assert "└── acme/math 1.2.0" in on_a_terminal(project, ["tree"])


def test_why_as_a_process(project: Shell) -> None:
    shown = project.succeed("why", "acme/words")
    assert shown.splitlines()[0] == "acme/suite>=1 -> acme/suite 1.0.0 -> acme/chat 1.0.0 -> acme/shared 2.0 ->"
    assert max(map(len, shown.splitlines())) <= 80 and len(shown.splitlines()) == 4
    assert "→" in on_a_terminal(project, ["why", "own"])
    told = project.json("why", "shared")
    assert [[one["name"] for one in path["packs"]] for path in told["paths"]] == [
        ["acme/suite", "acme/chat", "acme/shared"],
        ["acme/suite", "acme/math", "acme/shared"],
    ]
    assert "acme/words" in project.fail(4, "why", "acme/wrods")


def test_freeze_as_a_process(project: Shell) -> None:
    assert project.succeed("freeze").splitlines() == [
        "acme/chat==1.0.0",
        f"peft:acme/lora@{COMMIT}",
        "acme/math==1.2.0",
        "acme/shared==2.0",
        "acme/suite==1.0.0",
        "acme/words==1.0.0",
        "./own",
    ]
    assert project.succeed("freeze", "--hashes").splitlines()[-1] == f"./own --hash=sha256:{DIGEST}"
    told = project.json("freeze")["requirements"]
    assert told[0] == {"requirement": "acme/chat==1.0.0", "digest": DIGEST, "name": "acme/chat", "version": "1.0.0"}


def test_an_environment_without_a_lock_is_said(tmp_path: Path) -> None:
    (tmp_path / "skillhub.toml").touch()
    for command in (["tree"], ["freeze"], ["why", "acme/x"]):
        assert "skillhub lock" in Shell(tmp_path).fail(4, *command)


@pytest.mark.parametrize("arguments", [["tree"], ["why", "acme/words"], ["freeze", "--hashes"]])
def test_they_need_little_time_and_nothing_heavy(project: Shell, arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "skillhub", *arguments]
    traced = subprocess.run(
        command, env=project.variables, cwd=project.home, capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in traced.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "huggingface_hub", "numpy", "requests", "httpx2", "rich"}
