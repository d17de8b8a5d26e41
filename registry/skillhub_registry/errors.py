"""Errors as the Hub answers them: a status, ``X-Error-Code``, ``X-Error-Message`` and a JSON body.

The stock client chooses its exception by these headers, not by the status, when the server is on plain http.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INVALID_CREDENTIALS = "Invalid credentials in Authorization header"
"""The one message with which the client does not take a 401 for a missing repository."""


class HubError(Exception):
    """An answer that is not a success.

    Args:
        status: HTTP status.
        code: ``X-Error-Code``.
        message: one sentence for people; goes into the body as ``error``.
        header_message: ``X-Error-Message``, where it must differ from ``message``.
        headers: more headers.
        body: more members of the JSON body.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        header_message: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.header_message = header_message or message
        self.headers = dict(headers or {})
        self.body = dict(body or {})

    @property
    def told_headers(self) -> dict[str, str]:
        """Return all headers of the answer: the error's own, and those by which programs know it."""
        printable = "".join(c if " " <= c <= "~" else "?" for c in self.header_message)
        return {**self.headers, "X-Error-Code": self.code, "X-Error-Message": printable[:1000]}


def repository_not_found() -> HubError:
    """Return the error for a repository that is missing, or private to others: the two look the same."""
    return HubError(404, "RepoNotFound", "Repository not found")


def revision_not_found(revision: str) -> HubError:
    """Return the error for a branch, tag or commit that does not exist."""
    return HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def entry_not_found(message: str, commit: str) -> HubError:
    """Return the error for a path that a commit does not have; the client caches that by the commit's id."""
    return HubError(404, "EntryNotFound", message, headers={"X-Repo-Commit": commit})


def bad_request(message: str) -> HubError:
    """Return the error for a request that is malformed or asks for something impossible."""
    return HubError(400, "BadRequest", message)


def not_supported(message: str) -> HubError:
    """Return the error for a feature of the Hub that this registry does not have."""
    return HubError(400, "NotSupported", message)


def missing_parts() -> HubError:
    """Return the error for an upload that is ended before all its parts have come."""
    return bad_request("Parts of the upload are missing: upload the file again")


def unauthorized(message: str) -> HubError:
    """Return the error for a call without a valid token."""
    challenge = {"WWW-Authenticate": 'Bearer realm="Authentication required"'}
    return HubError(401, "Unauthorized", message, header_message=INVALID_CREDENTIALS, headers=challenge)


class ExpiredTokenError(HubError):
    """The answer to a token after its end.

    Args:
        number: of the token, as lists tell it.
        name: what its user calls it.
        account: the name of its user.
        refused_at: when the audit log last told that it was used.
    """

    def __init__(self, number: int, name: str, account: str, refused_at: int) -> None:
        said = unauthorized(f"The token {name!r} has expired: ask for another")
        super().__init__(said.status, said.code, said.message, header_message=said.header_message, headers=said.headers)
        self.number = number
        self.name = name
        self.account = account
        self.refused_at = refused_at


def forbidden(message: str) -> HubError:
    """Return the error for a valid token that is not allowed to do this."""
    return HubError(403, "Forbidden", message)


def conflict(message: str, **body: Any) -> HubError:
    """Return the error for something that exists already."""
    return HubError(409, "Conflict", message, body=body)


def too_large(message: str) -> HubError:
    """Return the error for a body over its limit."""
    return HubError(413, "PayloadTooLarge", message)


def busy(message: str = "The registry is busy; try again") -> HubError:
    """Return the error for a moment in which what is asked cannot be done; nothing has changed."""
    return HubError(503, "Busy", message, headers={"Retry-After": "1"})


def disk_full() -> HubError:
    """Return the error for a disk without room."""
    return HubError(507, "InsufficientStorage", "The registry's disk is full")


def upstream_failed(message: str) -> HubError:
    """Return the error for what the mirrored Hub would have had to send, and did not; trying again later may help."""
    return HubError(502, "UpstreamFailed", message)
