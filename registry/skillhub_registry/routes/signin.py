"""Signing in and out, and the tokens of whoever has."""

from __future__ import annotations

import re
import time
from typing import Final

from starlette.responses import RedirectResponse, Response

from skillhub.errors import NotFoundError
from skillhub_registry.accounts import Reach
from skillhub_registry.calls import Call, find_again
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError, bad_request
from skillhub_registry.forms import make_form_token, read_form
from skillhub_registry.observation import describe_change, making_change
from skillhub_registry.pages.rendering import render, wants_page
from skillhub_registry.passwords import LONGEST, SHORTEST, Attempt, change_password, sign_in
from skillhub_registry.reaches import find_reach
from skillhub_registry.repositories import find_repository
from skillhub_registry.rights import may_read
from skillhub_registry.sessions import COOKIE, SECONDS, end_session, is_secret, make_secret
from skillhub_registry.tokens import create_token, list_tokens, revoke_token

_LOCAL_PATH: Final = re.compile(r"/(?![/\\])[!-\[\]-~]*")
_LIFETIMES: Final = ("30", "90", "365", "0")
"""Days that a token may last; 0 for ever."""


def show_sign_in(call: Call) -> Response:
    """Answer ``GET /login``; whoever has signed in is sent on."""
    following = _safe_path(call.request.query_params.get("next", "/"))
    if call.caller is not None:
        return RedirectResponse(following, status_code=303)
    return _answer_form(call, following)


def _answer_form(call: Call, following: str, *, name: str = "", error: HubError | None = None) -> Response:
    """Return the form; a browser without a cookie gets one, to which the form is bound."""
    secret = call.request.cookies.get(COOKIE, "")
    if not is_secret(secret):  # what others put there is not sent back
        secret = make_secret()
    answer = render(
        call,
        "login.html",
        status=error.status if error else 200,
        token=make_form_token(call, secret),
        following=following,
        name=name,
        error=error.message if error else None,
    )
    answer.headers.update(error.told_headers if error else {})
    _set_cookie(call, answer, secret)
    return answer


def enter(call: Call) -> Response:
    """Answer ``POST /login``. The cookie is another one afterwards, so that none from before is worth anything."""
    form = read_form(call)
    name, following = form.get("name", "").strip(), _safe_path(form.get("next", "/"))
    attempt = Attempt(name, call.address, "POST /login")
    try:
        with making_change(None):
            secret = sign_in(call.registry.database, attempt, form.get("password", ""))
    except HubError as error:
        if not wants_page(call.request):
            raise
        return _answer_form(call, following, name=name, error=error)
    with making_change(None):  # whoever was signed in here before is not signing out
        _end(call)
    answer = RedirectResponse(following, status_code=303)
    _set_cookie(call, answer, secret)
    return answer


def leave(call: Call) -> Response:
    """Answer ``POST /logout``: the session is over, whoever else may know its cookie."""
    _end(call)
    answer = RedirectResponse("/", status_code=303)
    answer.delete_cookie(COOKIE, path="/")
    return answer


def show_password(call: Call) -> Response:
    """Answer ``GET /settings/password``."""
    done = call.request.query_params.get("done")
    return _answer_password(call, done=done if done in ("password", "tokens") else None)


def renew_password(call: Call) -> Response:
    """Answer ``POST /settings/password``. All sessions end but this one, whose cookie is another one afterwards."""
    form, account = read_form(call), call.account.account
    attempt = Attempt(account.name, call.address, "POST /settings/password", account.name)
    with_tokens, password = form.get("tokens") == "revoke", form.get("password", "")
    try:
        if password != form.get("again", ""):
            raise bad_request("The new password and its repetition differ")
        if password and password == form.get("current"):
            raise bad_request("The new password is the one that you typed as the current one: choose another")
        with making_change(None):
            secret = change_password(
                call.registry.database, account, attempt, form.get("current", ""), password, with_tokens=with_tokens
            )
    except HubError as error:
        if not wants_page(call.request):
            raise
        return _answer_password(call, error=error, with_tokens=with_tokens)
    answer = RedirectResponse(f"/settings/password?done={'tokens' if with_tokens else 'password'}", status_code=303)
    _set_cookie(call, answer, secret)
    return answer


def _answer_password(
    call: Call, *, done: str | None = None, error: HubError | None = None, with_tokens: bool = False
) -> Response:
    answer = render(
        call,
        "password.html",
        status=error.status if error else 200,
        done=done,
        error=error.message if error else None,
        with_tokens=with_tokens,
        shortest=SHORTEST,
        longest=LONGEST,
    )
    answer.headers.update(error.told_headers if error else {})
    answer.headers["Cache-Control"] = "no-store"
    return answer


def show_tokens(call: Call) -> Response:
    """Answer ``GET /settings/tokens``."""
    return _answer_tokens(call)


def make_token(call: Call) -> Response:
    """Answer ``POST /settings/tokens``: make a token, and show it this once."""
    form = read_form(call)
    name, scope = form.get("name", "").strip(), form.get("scope", "")
    if scope not in ("read", "write"):
        raise bad_request("scope must be read or write")
    days = form.get("days", "")
    if days not in _LIFETIMES:
        raise bad_request(f"days must be one of {', '.join(_LIFETIMES)}")
    expires_at = int(time.time()) + int(days) * 24 * 3600 if days != "0" else None
    limits = form.get("limits", "")
    describe_change(name=name, scope=scope, days=int(days), limits=limits.replace(",", " ").split())
    with call.registry.database.write() as connection:
        find_again(connection, call)
        reach = _read_reach(call, connection, limits)
        secret = create_token(connection, call.account.account, scope, name, expires_at=expires_at, reach=reach)
    return _answer_tokens(call, secret)


def _read_reach(call: Call, connection: Connection, text: str) -> Reach | None:
    """Return what a token is to be limited to, None where nothing is said; what its maker may not see is not there."""
    names = text.replace(",", " ").split()
    for name in names:
        namespace, slash, rest = name.partition("/")
        found = find_repository(connection, namespace, rest) if slash else None
        if slash and (found is None or not may_read(call.caller, found)):
            raise bad_request(f"There is no repository {ascii(name)[1:-1][:200]}")
    try:
        return find_reach(connection, names) if names else None
    except NotFoundError as error:
        raise bad_request(error.message.removesuffix(".")) from error


def revoke(call: Call) -> Response:
    """Answer ``POST /settings/tokens/{number}/revoke``, for one's own."""
    with call.registry.database.write() as connection:
        own = {str(token.id): token for token in list_tokens(connection, call.account.account)}
        token = own.get(call.parameters["number"])
        if token is None:
            raise HubError(404, "NotFound", "You have no such token")
        revoke_token(connection, token.id)
    return RedirectResponse("/settings/tokens", status_code=303)


def _answer_tokens(call: Call, secret: str | None = None) -> Response:
    with call.registry.database.read() as connection:
        tokens = list_tokens(connection, call.account.account)
    answer = render(call, "tokens.html", tokens=tokens, secret=secret, now=time.time())
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _end(call: Call) -> None:
    secret = call.request.cookies.get(COOKIE)
    if secret:
        with call.registry.database.write() as connection:
            end_session(connection, secret)


def _set_cookie(call: Call, answer: Response, secret: str) -> None:
    secure = call.request.url.scheme == "https"
    answer.set_cookie(COOKIE, secret, max_age=SECONDS, path="/", secure=secure, httponly=True, samesite="lax")


def _safe_path(path: str) -> str:
    """Return where to go after signing in: a path of this registry, whatever the link said."""
    return path if _LOCAL_PATH.fullmatch(path) else "/"
