"""Every error skillhub raises, each with an exit code, a slug, a cause and a remedy.

    SkillhubError                 70  internal
    ├── UsageError                 2  usage
    ├── ResolutionError            3  no-resolution
    ├── NotFoundError              4  not-found
    ├── WrongBaseError             5  wrong-base
    ├── IntegrityError             6  integrity
    ├── TrustError                 7  trust
    ├── NetworkError               8  network
    │   └── OfflineError           8  offline
    ├── AuthError                  9  auth
    ├── LockStaleError            10  lock-stale
    ├── EnvironmentLockedError    11  environment-locked
    ├── UnsafeContentError        12  unsafe-content
    ├── ResolverLimitError        13  resolver-limit
    ├── DiskError                 14  disk
    ├── NewerSchemaError          15  newer-schema
    └── MissingExtraError          2  missing-extra

The message says what is wrong and where; ``hint`` says what to do about it. Raising one with ``from`` keeps the
technical cause for ``--verbose``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

ERROR_SCHEMA = 0
"""Schema number of :meth:`SkillhubError.to_json`."""

FINDINGS_EXIT_CODE = 1
INTERRUPT_EXIT_CODE = 130
TERMINATED_EXIT_CODE = 143


class SkillhubError(Exception):
    """Base of every error that skillhub raises on purpose.

    Args:
        message: one sentence: what is wrong, and where.
        hint: one sentence: what to do about it.
        details: JSON-compatible facts for ``--json`` (paths, digests, names).
    """

    exit_code: ClassVar[int] = 70
    slug: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def to_json(self) -> dict[str, Any]:
        """Return the error as one JSON-compatible object."""
        return {
            "schema": ERROR_SCHEMA,
            "error": self.slug,
            "exit_code": self.exit_code,
            "message": self.message,
            "hint": self.hint,
            "details": self.details,
        }


@contextmanager
def located(where: str) -> Iterator[None]:
    """Let the errors of a block say first where the words are that they speak of."""
    try:
        yield
    except SkillhubError as error:
        error.message = f"{where}: {error.message}"
        raise


class UsageError(SkillhubError):
    """The call itself is wrong: a bad name, option or combination."""

    exit_code, slug = 2, "usage"


class MissingExtraError(UsageError):
    """The command needs an optional dependency that is not installed."""

    slug = "missing-extra"


class ResolutionError(SkillhubError):
    """No release satisfies the requirements."""

    exit_code, slug = 3, "no-resolution"


class NotFoundError(SkillhubError):
    """A pack, repository, revision, file or path does not exist."""

    exit_code, slug = 4, "not-found"


class WrongBaseError(SkillhubError):
    """The base model is not the one that the pack belongs to."""

    exit_code, slug = 5, "wrong-base"


class IntegrityError(SkillhubError):
    """Bytes are not what their digest, manifest or format says."""

    exit_code, slug = 6, "integrity"


class TrustError(SkillhubError):
    """An identity changed: another repository, signer or published digest under a known name."""

    exit_code, slug = 7, "trust"


class NetworkError(SkillhubError):
    """A registry could not be reached or did not answer as it should."""

    exit_code, slug = 8, "network"


class OfflineError(NetworkError):
    """Something is needed that is not here, and the network may not be used."""

    slug = "offline"


class AuthError(SkillhubError):
    """A token is missing, wrong or not allowed to do this; gated repositories as well."""

    exit_code, slug = 9, "auth"


class LockStaleError(SkillhubError):
    """The lockfile does not match the environment's requirements."""

    exit_code, slug = 10, "lock-stale"


class EnvironmentLockedError(SkillhubError):
    """Another process holds the environment for too long."""

    exit_code, slug = 11, "environment-locked"


class UnsafeContentError(SkillhubError):
    """Content that could do harm: a path that leaves its folder, pickled code, a size bomb."""

    exit_code, slug = 12, "unsafe-content"


class ResolverLimitError(SkillhubError):
    """The resolver gave up at its limit."""

    exit_code, slug = 13, "resolver-limit"


class DiskError(SkillhubError):
    """The disk is full or a path may not be written."""

    exit_code, slug = 14, "disk"


class NewerSchemaError(SkillhubError):
    """A file is of a schema that this version of skillhub does not read."""

    exit_code, slug = 15, "newer-schema"


_EXTRA_OF = {
    "torch": "models",
    "transformers": "models",
    "accelerate": "models",
    "numba": "models",
    "matplotlib": "plots",
    "starlette": "registry",
    "httptools": "registry",
    "uvicorn": "registry",
    "lz4": "registry",
}


def missing_extra(error: ModuleNotFoundError) -> Exception:
    """Return the sentence for an import that failed because an extra is not installed.

    Any other missing module is a bug and comes back as it is.
    """
    module = (error.name or "").partition(".")[0]
    extra = _EXTRA_OF.get(module)
    if extra is None:
        return error
    return MissingExtraError(
        f"This needs {module}, which is not installed.",
        hint=f"Install it: pip install 'skillhub-packs[{extra}]'.",
        module=module,
        extra=extra,
    )


def lacks_memory(error: BaseException) -> bool:
    """Say whether an error comes of too little memory, of this machine's or of an accelerator's."""
    if isinstance(error, MemoryError):
        return True
    texts = ("out of memory", "allocate memory", "ALLOC_FAILED")  # torch says no more by the type
    if isinstance(error, RuntimeError) and any(text in str(error) for text in texts):
        return True
    return error.__cause__ is not None and lacks_memory(error.__cause__)


def may_pass(error: BaseException) -> bool:
    """Say whether the same call may succeed later: it was interrupted, or a disk, a file or the memory was in its way."""
    if isinstance(error, SkillhubError) and error.details.get("may_pass"):  # in another process
        return True
    return not isinstance(error, Exception) or isinstance(error, OSError | DiskError) or lacks_memory(error)
