"""A registry: where packs are published to and installed from, and the token that belongs to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from skillhub import settings
from skillhub.errors import NotFoundError, UsageError
from skillhub.hub.tokens import stored_token, token_variable
from skillhub.redaction import hide

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB = "hub"
"""Name of the configured registry (``HF_ENDPOINT``); lockfiles hold it, so mirrors of one registry share them."""


_NOT_IN_A_HEADER = re.compile(r"[^!-~]")


@dataclass(frozen=True, repr=False)
class Registry:
    """One registry.

    Attributes:
        name: what lockfiles and receipts call it.
        endpoint: its address, without a trailing slash.
        token: sent to this endpoint and to no other; None for anonymous calls. Never printed.
    """

    name: str
    endpoint: str
    token: str | None = None

    def __post_init__(self) -> None:
        hide(self.token)
        hide(urlsplit(self.endpoint).password)
        if self.token is not None and _NOT_IN_A_HEADER.search(self.token):
            raise UsageError(
                f"The token for {self.address} has a line break or another character that no token has.",
                hint="Copy it again, without anything before or after it.",
            )

    def __repr__(self) -> str:
        return f"Registry({self.name!r}, {self.address!r})"

    @property
    def address(self) -> str:
        """The endpoint for messages: without a user or password."""
        parts = urlsplit(self.endpoint)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def folder(self) -> Path | None:
        """The folder of a vendored registry, whose endpoint is a ``file://`` address; None for one on the network."""
        parts = urlsplit(self.endpoint)
        if parts.scheme != "file":
            return None
        from urllib.request import url2pathname  # loads the standard library's HTTP and TLS, for this one function

        return Path(url2pathname(parts.path))

    @property
    def login_command(self) -> str:
        """What a user types to save a token for this registry."""
        return "skillhub login" if self.name == HUB else f"skillhub login --registry {self.address}"

    @property
    def authorization(self) -> dict[str, str]:
        """The HTTP header that carries the token; empty for anonymous calls."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def default_registry(endpoint: str | None = None, token: str | None = None) -> Registry:
    """Return the registry at ``endpoint``, by default the configured one.

    Args:
        endpoint: address; None means ``HF_ENDPOINT``, else the Hugging Face Hub.
        token: None means the one that belongs to the endpoint: what ``skillhub login --registry`` saved for it; for the
            configured endpoint also ``HF_TOKEN``, which goes first, and the token that huggingface_hub keeps.

    Raises:
        AuthError: the file of saved tokens is damaged.
        DiskError: it may not be read.
    """
    configured = settings.endpoint()
    chosen = (endpoint or configured).rstrip("/")
    if chosen != configured:
        name = urlsplit(chosen).netloc.rpartition("@")[2] or chosen
        return Registry(name, chosen, token or stored_token(chosen))
    own = None if token_variable() else stored_token(chosen)
    return Registry(HUB, chosen, token or own or _ambient_token(chosen))


def _ambient_token(endpoint: str) -> str | None:
    from huggingface_hub import get_token

    from skillhub.hub.failures import hub_failures
    from skillhub.hub.trusted import is_trusted_job, trusted_token

    if not is_trusted_job():
        return get_token()
    registry = Registry(HUB, endpoint)
    with hub_failures(registry):
        return trusted_token(registry.address)


def client(registry: Registry) -> HfApi:
    """Return huggingface_hub's client for a registry, with its token or explicitly none.

    Raises:
        NotFoundError: the registry is a vendored folder, which has nothing but the files of packs.
    """
    if registry.folder is not None:
        raise NotFoundError(
            f"{registry.folder} is a vendored folder, and has no more than the files of packs.",
            hint="Name a registry that is on the network: --registry URL.",
        )
    from huggingface_hub import HfApi

    from skillhub import __version__

    return HfApi(
        endpoint=registry.endpoint,
        token=registry.token or False,
        library_name="skillhub",
        library_version=__version__,
    )
