"""Who a token belongs to; and logging in to ``HF_ENDPOINT``, which is huggingface_hub's own affair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillhub.errors import AuthError
from skillhub.files import disk_errors
from skillhub.hub.failures import hub_failures
from skillhub.hub.registries import Registry, client
from skillhub.hub.repositories import require_token
from skillhub.redaction import presentable

_MOST = 200  # organisations and scopes that are read of one answer


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, as the registry says it; without characters that command a terminal.

    Attributes:
        name: of the user.
        organizations: that the user is a member of.
        token_name: what the token is called there; None where the registry does not tell.
        scope: what the token may do, such as ``read``, ``write`` or ``fineGrained``; None where the registry does not tell.
        entities: what a token of narrow scope is for, such as ``acme`` or ``acme/math-pack``.
    """

    name: str
    organizations: tuple[str, ...] = ()
    token_name: str | None = None
    scope: str | None = None
    entities: tuple[str, ...] = ()


def fetch_account(registry: Registry) -> Account:
    """Return who the registry's token belongs to; one request.

    Raises:
        AuthError: there is no token, or it is not valid.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    require_token(registry)
    with hub_failures(registry):
        said: Any = client(registry).whoami()
        token = (said.get("auth") or {}).get("accessToken") or {}
        scoped = (token.get("fineGrained") or {}).get("scoped") or []
        return Account(
            name=_line(said["name"]) or "",
            organizations=tuple(_line(one["name"]) or "" for one in (said.get("orgs") or [])[:_MOST]),
            token_name=_line(token.get("displayName")),
            scope=_line(token.get("role")),
            entities=tuple(_line(one["entity"]["name"]) or "" for one in scoped[:_MOST]),
        )


def _line(text: object) -> str | None:
    return " ".join(presentable(text[:200]).split()) if isinstance(text, str) else None


def log_in(registry: Registry) -> None:
    """Make the registry's token the one that huggingface_hub sends to ``HF_ENDPOINT``, as ``hf auth login`` does.

    Raises:
        AuthError: the token is not valid, or is an organisation's.
        DiskError: the token may not be written.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    from huggingface_hub import constants, login

    if registry.token and registry.token.startswith("api_org"):
        raise AuthError("This is the token of an organisation.", hint="Log in with a token of your own account.")
    with disk_errors(Path(constants.HF_TOKEN_PATH)), hub_failures(registry):
        login(token=registry.token, skip_if_logged_in=False)
