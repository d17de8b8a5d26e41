"""One boundary that turns every failure of huggingface_hub and of the network into one of our errors.

    gated repository                         AuthError, with the link where access is asked for
    401, 403, a missing or refused token     AuthError
    repository, revision or file not there   NotFoundError
    offline mode                             OfflineError
    refused or lost connections, timeouts,
    429, 5xx, answers that make no sense     NetworkError
    a commit that would change a release     IntegrityError
    a full disk, a missing permission        the OSError itself (``files.disk_errors`` has the path)

Messages are our own sentences and what the server says in ``X-Error-Message``; texts of the underlying libraries can
hold signed addresses, so they stay in the error's cause.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from skillhub.errors import (
    AuthError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    OfflineError,
    SkillhubError,
    UsageError,
)
from skillhub.hub.answers import bounded_answers
from skillhub.hub.registries import Registry
from skillhub.hub.waits import hear_client

_REWRITTEN = "ReleasesRewritten"  # of our registry: the index of releases would not only grow
_MISMATCH = "ReleaseMismatch"  # of our registry: a release lacks what its manifest lists
_TRY_AGAIN = "Check the network and HF_ENDPOINT, then run the same command again."


@contextmanager
def hub_failures(registry: Registry, repository: str | None = None) -> Iterator[None]:
    """Raise our own errors for whatever goes wrong while talking to ``registry``.

    Raises:
        AuthError: the token is missing, wrong or not allowed to do this; the repository is gated.
        NotFoundError: the repository, revision or file does not exist.
        NetworkError: the registry could not be reached or did not answer as it should.
        OfflineError: the network may not be used.
        IntegrityError: the registry keeps what was published from being changed.
        UsageError: the repository's name is not valid.
    """
    hear_client()
    try:
        with bounded_answers(registry.address):
            yield
    except SkillhubError:
        raise
    except Exception as error:
        translated = _translate(error, registry, repository)
        if translated is None:
            raise
        raise translated from error


def _translate(error: BaseException, registry: Registry, repository: str | None) -> SkillhubError | None:
    """Return our error for a foreign one, or None when it is no business of this boundary."""
    import httpx2
    from huggingface_hub import errors

    what = f"{repository} at {registry.address}" if repository else registry.address
    if isinstance(error, errors.OfflineModeIsEnabled):
        return offline_error(what)
    if isinstance(error, errors.LocalEntryNotFoundError):
        # raised in place of the failed request that is its cause; without one, only the cache was asked
        return _translate(error.__cause__, registry, repository) if error.__cause__ else offline_error(what)
    if isinstance(error, errors.HfHubHTTPError):
        return _translate_answer(error, registry, repository)
    if isinstance(error, errors.OIDCError | errors.LocalTokenNotFoundError):
        return AuthError(f"There is no usable token for {registry.address}.", hint=_log_in(registry))
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{repository!r} is not a repository's name.", hint="Write OWNER/NAME.")
    if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL | httpx2.StreamError):
        return NetworkError(_transport_sentence(error, registry), hint=_TRY_AGAIN, endpoint=registry.address)
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return None
    return _translate_transfer(error, registry, repository)


def _translate_transfer(error: BaseException, registry: Registry, repository: str | None) -> SkillhubError | None:
    """Return our error for what uploads and downloads raise as plain RuntimeError, ValueError or OSError."""
    if _is_no_room(error):
        return None if isinstance(error, OSError) else _no_room(error)
    if isinstance(error.__cause__, Exception):
        translated = _translate(error.__cause__, registry, repository)
        if translated is not None:
            return translated
    if isinstance(error, PermissionError):  # of hf_xet, without an errno
        return AuthError(f"{registry.address} refused the transfer.", hint=_log_in(registry))
    if isinstance(error, RuntimeError | ValueError | OSError):
        of = f" of {repository}" if repository else ""
        return NetworkError(
            f"A transfer{of} with {registry.address} failed.", hint=_TRY_AGAIN, endpoint=registry.address
        )
    if isinstance(error, LookupError | TypeError | AttributeError):  # an answer without what the client takes from it
        return NetworkError(
            f"{registry.address} does not answer like a Hugging Face Hub.",
            hint="Check HF_ENDPOINT and the proxy.",
            endpoint=registry.address,
        )
    return None


def _translate_answer(error: Any, registry: Registry, repository: str | None) -> SkillhubError:
    """Return our error for an HTTP answer of 400 and above."""
    from huggingface_hub import errors

    status = error.response.status_code
    said = f" ({error.server_message})" if error.server_message else ""
    what = repository or "What was asked for"
    if isinstance(error, errors.GatedRepoError):
        return AuthError(
            f"Access to {what} is restricted.",
            hint=f"Ask for access at {registry.address}/{repository} while logged in, then run the command again.",
            link=f"{registry.address}/{repository}",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "check the token's rights" if registry.token else f"log in: {registry.login_command}"
        return NotFoundError(
            f"There is no repository {what} at {registry.address}.",
            hint=f"Check the name; if the repository is private, {private}.",
        )
    if isinstance(error, errors.RevisionNotFoundError | errors.EntryNotFoundError) or status == 404:
        return NotFoundError(f"{what} at {registry.address} has no such revision or file.", hint="Check the name.")
    if error.response.headers.get("X-Error-Code") == _REWRITTEN:
        return IntegrityError(
            f"{registry.address} refuses to change what was published{said}.",
            hint="A published version never changes: publish another version.",
        )
    if error.response.headers.get("X-Error-Code") == _MISMATCH:
        return IntegrityError(
            f"{registry.address} refuses a release that is not what its manifest says{said}.",
            hint="Publish the pack with `skillhub publish`, which checks its files first.",
        )
    if status in (401, 403):
        explained = status == 403 and said  # what stands in the way may be another thing than the token
        hint = f"Do what it says, or log in as who may: {registry.login_command}." if explained else _log_in(registry)
        return AuthError(f"{registry.address} refused this with {status}{said}.", hint=hint, status=status)
    if status == 429:
        hint = "Wait a few minutes: it answers no more requests for now."
    else:
        hint = _TRY_AGAIN if status >= 500 else "The registry refuses this; its words say why."
    return NetworkError(f"{registry.address} answered {status}{said}.", hint=hint, status=status)


def _transport_sentence(error: BaseException, registry: Registry) -> str:
    import httpx2

    if isinstance(error, httpx2.TimeoutException):
        return f"{registry.address} did not answer in time."
    if isinstance(error, httpx2.ConnectError):
        return f"{registry.address} cannot be reached."
    return f"The connection to {registry.address} broke."


def _log_in(registry: Registry) -> str:
    return f"Log in with a token of this registry that may do it: {registry.login_command}."


def offline_error(what: str) -> OfflineError:
    """Return the error for something that is not here while the network may not be used."""
    return OfflineError(
        f"{what} is needed and not here, and the network may not be used.",
        hint="Run the command once with the network: without --offline and with HF_HUB_OFFLINE unset.",
    )


def _is_no_room(error: BaseException) -> bool:
    # hf_xet writes files itself and tells of a full disk in words only
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)


def _no_room(error: BaseException) -> SkillhubError:
    from skillhub.errors import DiskError

    return DiskError("The disk is full.", hint="Free some space, then run the same command again.")
