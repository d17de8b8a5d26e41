"""Forms of pages: what a browser sends, and proof that one of this registry's pages sent it.

A browser sends its cookie along with whatever any page makes it send. So every form carries a token that is made from
the cookie by the registry's key, which no other page can read or make.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final
from urllib.parse import parse_qsl

from skillhub_registry.calls import Call
from skillhub_registry.errors import HubError, bad_request
from skillhub_registry.sessions import COOKIE

TOKEN_FIELD: Final = "form_token"

_FIELDS = 100


def form_token(call: Call) -> str | None:
    """Return the token that the forms of a page must carry; None for a browser without a cookie."""
    secret = call.request.cookies.get(COOKIE)
    return make_form_token(call, secret) if secret else None


def make_form_token(call: Call, secret: str) -> str:
    """Return the token that belongs to a cookie."""
    message = b"form token\0" + secret.encode("utf-8", "surrogateescape")
    return hmac.digest(call.registry.signer.key, message, hashlib.sha256).hex()


def check_form(call: Call) -> None:
    """Refuse a form that none of this registry's pages sent. A caller with a token of its own needs no such proof.

    Raises:
        HubError: 403.
    """
    if "authorization" in call.request.headers:
        return
    expected = form_token(call)
    sent = read_form(call).get(TOKEN_FIELD, "")
    if expected is None or not hmac.compare_digest(expected.encode(), sent.encode("utf-8", "replace")):
        raise HubError(403, "InvalidForm", "This form is out of date: go back, load the page again and repeat it")


def read_form(call: Call) -> dict[str, str]:
    """Return the fields of a form; of a field that is there twice, the last.

    Raises:
        HubError: 400, the body is no form.
    """
    try:
        fields = parse_qsl(call.body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS)
    except ValueError as error:
        raise bad_request("The form cannot be read") from error
    return dict(fields)
