"""The one place that says which names, refs and paths are valid. Nothing else looks inside a name."""

from __future__ import annotations

import re

from skillhub_registry.errors import HubError, bad_request

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REF_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\]")
_COMMIT_ID = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

RESERVED_ACCOUNTS = frozenset(
    [
        "api",
        "assets",
        "bases",
        "datasets",
        "docs",
        "healthz",
        "lfs",
        "login",
        "logout",
        "metrics",
        "models",
        "new",
        "openapi.json",
        "organizations",
        "readyz",
        "settings",
        "spaces",
        "static",
        "xet",
    ]
)
"""First path segments that the registry answers itself."""


def check_account_name(name: object) -> str:
    """Return a valid name of a user or organisation.

    Raises:
        HubError: 400.
    """
    checked = _check_name(name, "account")
    if checked.lower() in RESERVED_ACCOUNTS:
        raise bad_request(f"The name {checked!r} is reserved")
    return checked


def check_repository_name(name: object) -> str:
    """Return a valid repository name, without its namespace.

    Raises:
        HubError: 400.
    """
    checked = _check_name(name, "repository")
    if checked.lower().endswith(".git"):
        raise bad_request(f"A repository name cannot end in .git: {checked!r}")
    return checked


def _check_name(name: object, kind: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "--" in name or ".." in name:
        raise bad_request(
            f"Invalid {kind} name {_shorten(name)}: letters, digits, '-', '_' and '.', at most 96, "
            "beginning with a letter or digit, not ending in '-' or '.', without '--' or '..'"
        )
    return name


def fold_name(name: str) -> str:
    """Return what a name is compared by: names that differ in the case of their letters only are the same."""
    return name.lower() if name.isascii() else name  # no name has other letters, and some of those fold to ASCII


def check_path(path: object) -> str:
    """Return a valid path of a file or folder in a repository: relative, with ``/``, without tricks.

    Raises:
        HubError: 400.
    """
    if not isinstance(path, str) or not path or _CONTROL.search(path):
        raise _invalid_path(path)
    if len(path.encode()) > 1024:
        raise _invalid_path(path)
    for part in path.split("/"):
        if part in ("", ".", "..") or part.lower() == ".git" or len(part.encode()) > 255:
            raise _invalid_path(path)
    return path


def _invalid_path(path: object) -> HubError:
    return bad_request(
        f"Invalid path {_shorten(path)}: it must be relative, without '..', '.git', empty parts, backslashes or "
        "control characters, at most 1024 bytes"
    )


def check_ref_name(name: object) -> str:
    """Return a valid branch or tag name, by the rules of ``git check-ref-format`` and a few of our own.

    Raises:
        HubError: 400.
    """
    valid = (
        isinstance(name, str)
        and 0 < len(name) <= 200
        and name.isprintable()
        and not _REF_FORBIDDEN.search(name)
        and not name.startswith(("/", "-", "refs/"))
        and not name.endswith(("/", "."))
        and name not in ("@", "HEAD")
        and not any(part.startswith(".") or part.endswith(".lock") for part in name.split("/"))
        and not _COMMIT_ID.fullmatch(name)
    )
    if not valid or not isinstance(name, str):
        raise bad_request(f"Invalid branch or tag name {_shorten(name)}")
    return name


def is_possible(namespace: str, name: str, revision: str) -> bool:
    """Say whether there can be such a repository, and such a revision of it, on any Hub."""
    try:
        check_account_name(namespace)
        check_repository_name(name)
        if not is_commit_id(revision):
            check_ref_name(revision.removeprefix("refs/"))
    except HubError:
        return False
    return True


def is_sha256(value: object) -> bool:
    """Say whether the value is 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def is_commit_id(value: object) -> bool:
    """Say whether the value is a full commit id."""
    return isinstance(value, str) and _COMMIT_ID.fullmatch(value) is not None


def _shorten(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 120 else shown[:117] + "..."
