"""Tokens for jobs of a CI service without a secret: the Hub's trusted publishing, as huggingface_hub does it.

Where ``HF_OIDC_RESOURCE`` names a repository, huggingface_hub has the CI service vouch for the job (or takes what it
vouched, from ``HF_OIDC_ID_TOKEN``) and exchanges that at ``HF_ENDPOINT`` for a token that lives for an hour and may write
to that repository only. A job that asks for it and does not get it is told why; no other token takes its place.
"""

from __future__ import annotations

import os

from skillhub.errors import AuthError
from skillhub.redaction import hide

_RESOURCE = "HF_OIDC_RESOURCE"
_SECRETS = ("HF_OIDC_ID_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN")


def is_trusted_job() -> bool:
    """Say whether this process is to publish by what a CI service says of it."""
    return bool(os.environ.get(_RESOURCE))


def trusted_token(address: str) -> str | None:
    """Return the token of this job.

    Args:
        address: of the registry that exchanges the token, for messages.

    Raises:
        AuthError: nobody vouches for the job, or the registry does not trust who does.
        Exception: what huggingface_hub and its HTTP library raise when something cannot be reached.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError, OIDCError

    resource = os.environ.get(_RESOURCE, "")
    for name in _SECRETS:
        hide(os.environ.get(name))
    try:
        return get_token()
    except OIDCError as error:
        raise AuthError(
            f"{_RESOURCE} asks for a token for {resource}, and nothing says which job this is.",
            hint="On GitHub give the job `permissions: id-token: write`; elsewhere set HF_OIDC_ID_TOKEN to the ID token "
            f"that the CI service made for {address}. Without trusted publishing, unset {_RESOURCE}.",
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status == 429:
            raise
        said = f" ({error.server_message})" if error.server_message else ""
        raise AuthError(
            f"{address} gives this job no token for {resource}: it answered {status}{said}.",
            hint=f"Name this workflow as a trusted publisher in the settings of {resource}, and check {_RESOURCE}.",
            status=status,
        ) from error
