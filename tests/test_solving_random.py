"""The resolver against one that tries everything, on thousands of small graphs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from skillhub.errors import ResolutionError, SkillhubError, WrongBaseError
from skillhub.names import parse_pack_name
from skillhub.resolver import Resolution
from skillhub.resolver.problem import Problem
from skillhub.resolver.solving import resolve
from tests.solving_examples import Shelf, Table, chosen, complaints, every_answer, random_problem, release

ROOT = Path(__file__).resolve().parents[1]

GRAPHS = 400
"""Per test case: there are ten of them."""


def attempt(problem: Problem, table: Table) -> Resolution | SkillhubError:
    try:
        return resolve(problem, Shelf(table))
    except (ResolutionError, WrongBaseError) as error:
        return error


@pytest.mark.parametrize("start", range(0, 10 * GRAPHS, GRAPHS))
def test_small_graphs_agree_with_trying_everything(start: int) -> None:
    outcomes = {"solved": 0, "no-resolution": 0, "wrong-base": 0}
    for seed in range(start, start + GRAPHS):
        problem, table = random_problem(seed)
        found = attempt(problem, table)
        is_solvable = any(True for _ in every_answer(problem, table))
        if isinstance(found, SkillhubError):
            assert not is_solvable, (seed, found.message)
            without_base = any(True for _ in every_answer(replace(problem, base=None), table))
            assert isinstance(found, WrongBaseError) == without_base, (seed, found.message)
            check_explanation(found, problem)
            outcomes[found.slug] += 1
        else:
            assert is_solvable, seed
            check_answer(found, problem, table, seed)
            outcomes["solved"] += 1
    assert min(outcomes.values()) > GRAPHS // 50, outcomes


def check_answer(found: Resolution, problem: Problem, table: Table, seed: int) -> None:
    choice = {str(pick.name).lower(): pick.release for pick in found.picks}
    assert list(complaints(problem, table, choice)) == [], seed
    assert list(choice) == sorted(choice), seed
    reached, pending = set(), {str(one.pack).lower() for one in problem.requirements}
    while pending:
        reached |= pending
        needed = {
            str(name).lower() for pick in found.picks for name in pick.dependencies if str(pick.name).lower() in reached
        }
        pending = (needed if problem.with_dependencies else set()) - reached
    assert reached == set(choice), seed
    if problem.base:
        assert {pick.fingerprint for pick in found.picks} == {problem.base.fingerprint}


def check_explanation(error: SkillhubError, problem: Problem) -> None:
    shown = f"{error.message}\n{error.hint}"
    assert error.hint and len(shown.splitlines()) < 40 and len(shown) < 6000, shown
    assert any(one.text in error.message for one in problem.requirements), shown
    assert error.details["requirements"], shown


@pytest.mark.parametrize("seed", range(0, 1000, 5))
def test_neither_order_changes_the_answer(seed: int) -> None:
    problem, table = random_problem(seed)
    expected = attempt(problem, table)
    rng = random.Random(seed)
    for _ in range(2):
        shuffled = {name: rng.sample(table[name], len(table[name])) for name in rng.sample(list(table), len(table))}
        asked = tuple(rng.sample(problem.requirements, len(problem.requirements)))
        locked = dict(rng.sample(list(problem.locked.items()), len(problem.locked)))
        again = attempt(replace(problem, requirements=asked, locked=locked), shuffled)
        if isinstance(expected, SkillhubError):
            assert isinstance(again, SkillhubError)
            assert (again.message, again.hint) == (expected.message, expected.hint)
        else:
            assert again == expected


def test_the_order_of_sets_in_memory_changes_no_answer() -> None:
    script = (
        "from tests.solving_examples import *\n"
        "for seed in range(150):\n"
        "    problem, table = random_problem(seed)\n"
        "    try:\n"
        "        print(chosen(resolve(problem, Shelf(table))))\n"
        "    except Exception as error:\n"
        "        print(error, error.hint)\n"
    )

    def output(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT, check=True
        ).stdout

    first = output("1")
    assert len(first.splitlines()) >= 150 and output("2") == first


@pytest.mark.parametrize("seed", range(0, 1000, 5))
def test_what_is_locked_stays_when_more_is_published(seed: int) -> None:
    problem, table = random_problem(seed)
    before = attempt(problem, table)
    if isinstance(before, SkillhubError):
        return
    locked = {parse_pack_name(name): table_version(before, name) for name in chosen(before)}
    more = {name: [*found, release("2.2"), release("4.0", ["o/p0"])] for name, found in table.items()}
    assert chosen(resolve(replace(problem, locked=locked), Shelf(more))) == chosen(before)


def table_version(found: Resolution, name: str) -> object:
    return next(pick.release.version for pick in found.picks if str(pick.name) == name)
