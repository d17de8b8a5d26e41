"""Putting values into templates, and what every page tells the browser that it may do.

Texts come from whoever uploaded them: the templates escape all of them, and the policy lets nothing run or load that
this registry does not serve itself.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from skillhub_registry.calls import Call
from skillhub_registry.errors import HubError, entry_not_found
from skillhub_registry.forms import form_token

PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self' data:; script-src 'self'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
    "Vary": "Accept, Authorization, Cookie",
}

_FOLDER = Path(__file__).parent
_STATIC: Final = {
    "style.css": "text/css; charset=utf-8",
    "copy.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_CONTENTS: Final = {name: (_FOLDER / "static" / name).read_bytes() for name in _STATIC}


def render(call: Call, template: str, *, status: int = 200, token: str | None = None, **values: Any) -> Response:
    """Return a page.

    Args:
        call: what is answered; says who is signed in.
        template: a file of ``templates/``.
        status: HTTP status.
        token: what its forms carry, unless it belongs to the cookie that came.
        values: what the template needs.
    """
    page = _TEMPLATES.get_template(template).render(
        viewer=call.caller.account.name if call.caller else None,
        form_token=token or form_token(call),
        here=_path_of(call.request),
        endpoint=call.endpoint,
        **values,
    )
    return HTMLResponse(page, status, headers=PAGE_HEADERS)


def render_error(call: Call, error: HubError) -> Response:
    """Return the page for an error. It is the same for what is private and what is missing, whoever looks."""
    request, viewer = call.request, call.caller.account.name if call.caller else None
    is_gated, is_missing = error.code == "GatedRepo", error.code == "RepoNotFound"
    parts = request.scope["path"].split("/")
    page = _TEMPLATES.get_template("error.html").render(
        status=error.status,
        title=_TITLES.get(error.status, "That did not work"),
        message=error.message,
        gated="/".join(parts[:3]) if is_gated else None,
        missing=is_missing,
        sign_in=viewer is None and (error.status == 401 or is_missing),
        viewer=viewer,
        form_token=form_token(call) if viewer else None,
        here=_path_of(request) if request.method == "GET" else "/",
    )
    return HTMLResponse(page, error.status, headers=PAGE_HEADERS)


def compile_templates() -> None:
    """Compile every template, which otherwise the first visitor of each page waits for."""
    for name in _TEMPLATES.list_templates():
        _TEMPLATES.get_template(name)


def serve_static(call: Call) -> Response:
    """Answer ``GET /static/{file}``: the stylesheet, the script and the icon, whose addresses change with them."""
    name = call.parameters["file"]
    if name not in _STATIC:
        raise entry_not_found("There is no such file", "")
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "public, max-age=31536000, immutable"}
    return Response(_CONTENTS[name], media_type=_STATIC[name], headers=headers)


def wants_page(request: Request) -> bool:
    """Say whether the answer is for a browser, which says that it reads HTML; clients of the API do not."""
    return "text/html" in request.headers.get("accept", "")


def _path_of(request: Request) -> str:
    query = request.url.query
    return f"{request.scope['path']}?{query}" if query else str(request.scope["path"])


def _static_address(name: str) -> str:
    return f"/static/{name}?{hashlib.sha256(_CONTENTS[name]).hexdigest()[:12]}"


def _format_size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _format_count(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 10 * size or (unit != "k" and count >= size):
            return f"{count / size:.3g} {unit}"
    return f"{count:,}"


def _as_date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d")


def _as_time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _short_fingerprint(fingerprint: str) -> str:
    return fingerprint[:17] + "…"


def _make_templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals["static"] = _static_address
    environment.filters.update(
        size=_format_size,
        number=_format_count,
        date=_as_date,
        time=_as_time,
        fingerprint=_short_fingerprint,
        part=lambda text: quote(text, safe=""),
        path=lambda text: quote(text, safe="/"),
    )
    return environment


_TITLES: Final = {
    400: "That did not work",
    401: "Please sign in",
    403: "You may not do this",
    404: "Not found",
    409: "That does not fit what is there",
    413: "That is too large",
    429: "Too many requests",
    500: "Something went wrong here",
    503: "The registry is busy",
}

_TEMPLATES: Final = _make_templates()
