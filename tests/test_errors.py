"""The error tree: exit codes, slugs, the JSON form, and what its docstring promises."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator

import pytest

from skillhub import errors
from skillhub.errors import NetworkError, OfflineError, SkillhubError, UsageError


def descendants(kind: type[SkillhubError]) -> Iterator[type[SkillhubError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from descendants(child)


TREE = [kind for kind in descendants(SkillhubError) if kind.__module__ == errors.__name__]

EXIT_CODES = {
    "SkillhubError": (70, "internal"),
    "UsageError": (2, "usage"),
    "MissingExtraError": (2, "missing-extra"),
    "ResolutionError": (3, "no-resolution"),
    "NotFoundError": (4, "not-found"),
    "WrongBaseError": (5, "wrong-base"),
    "IntegrityError": (6, "integrity"),
    "TrustError": (7, "trust"),
    "NetworkError": (8, "network"),
    "OfflineError": (8, "offline"),
    "AuthError": (9, "auth"),
    "LockStaleError": (10, "lock-stale"),
    "EnvironmentLockedError": (11, "environment-locked"),
    "UnsafeContentError": (12, "unsafe-content"),
    "ResolverLimitError": (13, "resolver-limit"),
    "DiskError": (14, "disk"),
    "NewerSchemaError": (15, "newer-schema"),
}
"""The promise to scripts: it may grow, and nothing in it may change."""


def test_exit_codes_and_slugs_are_the_promised_ones() -> None:
    assert {kind.__name__: (kind.exit_code, kind.slug) for kind in TREE} == EXIT_CODES


def test_the_drawing_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"^\W*(\w+Error)\s+(\d+)\s+([a-z-]+)$", errors.__doc__ or "", flags=re.MULTILINE)
    assert {name: (int(code), slug) for name, code, slug in drawn} == EXIT_CODES


def test_reserved_exit_codes_belong_to_no_error() -> None:
    reserved = {0, errors.FINDINGS_EXIT_CODE, errors.INTERRUPT_EXIT_CODE, errors.TERMINATED_EXIT_CODE}
    assert reserved == {0, 1, 130, 143}
    assert not reserved & {kind.exit_code for kind in TREE}


def test_offline_is_a_network_error_and_a_missing_extra_a_usage_error() -> None:
    assert issubclass(OfflineError, NetworkError)
    assert issubclass(errors.MissingExtraError, UsageError)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_json_form(kind: type[SkillhubError]) -> None:
    error = kind("It broke.", hint="Mend it.", path="a/b", sizes=[1, 2])
    assert str(error) == error.message == "It broke."
    assert json.loads(json.dumps(error.to_json())) == {
        "schema": 0,
        "error": kind.slug,
        "exit_code": kind.exit_code,
        "message": "It broke.",
        "hint": "Mend it.",
        "details": {"path": "a/b", "sizes": [1, 2]},
    }


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_an_error_survives_the_way_from_a_worker_process(kind: type[SkillhubError]) -> None:
    error = kind("It broke.", hint="Mend it.", path="a/b")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind and copy.to_json() == error.to_json()


def caused(cause: BaseException) -> SkillhubError:
    error = UsageError("could not be loaded")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), True),
        (OSError(28, "No space left on device"), True),
        (errors.DiskError("the disk is full"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (caused(MemoryError()), True),
        (SkillhubError("Rank 1 failed", may_pass=True), True),
        (SkillhubError("Rank 1 failed"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (caused(OSError("no config.json")), False),
        (UsageError("The pack does not fit"), False),
    ],
)
def test_what_may_succeed_later_is_told_from_what_cannot(error: BaseException, expected: bool) -> None:
    assert errors.may_pass(error) is expected
