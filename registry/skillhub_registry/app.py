"""The web application: routes from the table, errors as the Hub answers them, downloads counted."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Final, cast

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from skillhub_registry.audit import Change, choose_details
from skillhub_registry.calls import Call, Endpoint, Permission, admit, decode_parameters, read_body, recognise
from skillhub_registry.errors import ExpiredTokenError, HubError, disk_full
from skillhub_registry.forms import check_form
from skillhub_registry.logs import log_request
from skillhub_registry.observation import Observation, Observer, making_change
from skillhub_registry.outgoing import MIRROR
from skillhub_registry.pages.rendering import compile_templates, render_error, wants_page
from skillhub_registry.registry import Registry
from skillhub_registry.revisions import DEFAULT_BRANCH
from skillhub_registry.routes.table import ENDPOINTS
from skillhub_registry.statistics import FLUSH_SECONDS
from skillhub_registry.threads import run_changing, run_reading
from skillhub_registry.tokens import note_expired_use

logger = logging.getLogger("skillhub_registry")

_WARMING_SECONDS: Final = 2
"""After the start, which is to be quick, and before most people come."""


def make_app(registry: Registry) -> ASGIApp:
    """Return the ASGI application that serves a registry, and closes it at the end."""
    app = Starlette(
        routes=[_make_route(registry, endpoint) for endpoint in ENDPOINTS],
        exception_handlers={
            HubError: _answer_hub_error,
            HTTPException: _answer_http_exception,
            ClientDisconnect: _answer_disconnect,
            OSError: _answer_os_error,
            Exception: _answer_crash,
        },
        lifespan=lambda _: _lifespan(registry),
    )
    app.router.redirect_slashes = False
    app.state.endpoints = ENDPOINTS
    app.state.registry = registry
    return Observer(_RawPaths(app), registry.metrics.begin, partial(_end, registry))


def _end(registry: Registry, seen: Observation) -> None:
    registry.metrics.end(seen)
    log_request(seen)


class _RawPaths:
    """Routes by the path as it was sent: ``%2F`` inside a revision or path must not separate it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("ascii", "replace")}
        await self._app(scope, receive, send)


def _make_route(registry: Registry, endpoint: Endpoint) -> Route:
    run = run_reading if endpoint.method == "GET" or endpoint.permission is Permission.READ else run_changing
    at_once = endpoint.method == "GET" and not inspect.iscoroutinefunction(endpoint.handler)

    async def answer(request: Request) -> Response:
        call = Call(registry, request, decode_parameters(request.path_params))
        seen: Observation = request.scope["observation"]
        seen.route = endpoint.path
        if _may_be_mirrored(call, endpoint):
            call = await _let_in(call, endpoint, seen)
        elif at_once and not _has_body(request):
            return await run_reading(lambda: _handle(endpoint, _admit(call, endpoint, seen)))
        else:
            call = await run_reading(_admit, call, endpoint, seen)
        if inspect.iscoroutinefunction(endpoint.handler):
            with _observing_change(call, endpoint):
                return await cast(Callable[[Call], Awaitable[Response]], endpoint.handler)(call)
        call = dataclasses.replace(call, body=await read_body(request, endpoint.body_limit))
        with _observing_change(call, endpoint):
            return await run(_handle_arrived if _has_body(request) else _handle, endpoint, call)

    return Route(endpoint.path, answer, methods=[endpoint.method])


def _has_body(request: Request) -> bool:
    return "content-length" in request.headers or "transfer-encoding" in request.headers


def _handle(endpoint: Endpoint, call: Call) -> Response:
    if endpoint.sessions and endpoint.method not in ("GET", "HEAD"):
        check_form(call)
    return cast(Callable[[Call], Response], endpoint.handler)(call)


def _handle_arrived(endpoint: Endpoint, call: Call) -> Response:
    """Handle a call whose body has arrived. That may have taken long, at will: what its caller was let in for may have ended meanwhile."""
    return _handle(endpoint, admit(call, endpoint.permission, sessions=endpoint.sessions))


def _may_be_mirrored(call: Call, endpoint: Endpoint) -> bool:
    """Say whether a call is answered with what the mirrored Hub has as well; another mirror's call is not."""
    if call.registry.mirror is None or endpoint.permission not in (Permission.READ, Permission.DOWNLOAD):
        return False
    return MIRROR not in call.request.headers.get("via", "")


async def _let_in(call: Call, endpoint: Endpoint, seen: Observation) -> Call:
    """Let a call in, after having here what the mirrored Hub has."""
    mirror = call.registry.mirror
    assert mirror is not None
    try:
        admitted = await run_reading(_admit, call, endpoint, seen)
    except HubError as error:
        if error.code != "RepoNotFound":
            raise
        call.registry.limiter.check("api", "", call.address)  # it was no success, and has not been counted
    else:
        if not admitted.target.upstream:
            return admitted
    namespace, name = call.parameters["namespace"], call.parameters["name"]
    revision = call.parameters.get("revision", DEFAULT_BRANCH)
    if not await run_reading(mirror.is_followed, namespace, name, revision):
        await run_sync(mirror.follow, namespace, name, revision, limiter=mirror.asking)
    admitted = await run_reading(admit, call, endpoint.permission, sessions=endpoint.sessions)
    return _note(admitted, seen)


def _admit(call: Call, endpoint: Endpoint, seen: Observation) -> Call:
    """Let a call in, unless its caller has called too often. Signed links are not counted: asking for them was."""
    limiter = call.registry.limiter
    kind = "downloads" if "/resolve/" in endpoint.path else "api"
    try:
        admitted = admit(call, endpoint.permission, sessions=endpoint.sessions)
    except HubError as error:
        if error.status == 401:  # guessing tokens
            limiter.check(kind, "", call.address)
        if isinstance(error, ExpiredTokenError):
            note_expired_use(call.registry.database, error, call.address)
        raise
    if endpoint.permission is not Permission.GRANT and endpoint.path not in _UNCOUNTED:
        limiter.check(kind, admitted.caller.account.name if admitted.caller else "", call.address)
    return _note(admitted, seen)


def _note(admitted: Call, seen: Observation) -> Call:
    seen.account = admitted.caller.account.name if admitted.caller else ""
    seen.repository = admitted.repository.full_name if admitted.repository else ""
    return admitted


_UNCOUNTED = (
    "/healthz",
    "/readyz",
    "/metrics",
    "/static/{file}",
)  # the last is what the page that says to wait is made with


def _observing_change(call: Call, endpoint: Endpoint) -> AbstractContextManager[None]:
    """Have the audit log tell what a call changes."""
    if endpoint.method in ("GET", "HEAD") or call.caller is None:
        return nullcontext()
    return making_change(
        Change(
            call.caller.account.name,
            call.address,
            f"{endpoint.method} {endpoint.path}",
            call.repository.full_name if call.repository else "",
            choose_details(call.parameters, call.body),
        )
    )


@asynccontextmanager
async def _lifespan(registry: Registry) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(_flush_downloads(registry)), asyncio.create_task(_compile_templates())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        registry.close()


async def _compile_templates() -> None:
    await asyncio.sleep(_WARMING_SECONDS)
    await run_reading(compile_templates)


async def _flush_downloads(registry: Registry) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        try:
            await run_changing(registry.downloads.flush, registry.database)
        except HubError as error:  # the next time, then
            logger.warning("downloads are not counted yet: %s", error)


async def _make_error_response(request: Request, error: HubError) -> Response:
    """Return the answer for an error: a page for browsers, JSON for everybody else."""
    if wants_page(request):
        call = Call(request.app.state.registry, request, {})
        page = render_error(await run_reading(recognise, call) if error.status < 500 else call, error)
        page.headers.update(error.told_headers)
        return page
    return JSONResponse({**error.body, "error": error.message}, status_code=error.status, headers=error.told_headers)


async def _answer_hub_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    return await _make_error_response(request, error)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "".join(word.capitalize() for word in error.detail.split())
    headers = {"Allow": ", ".join(_list_methods(request))} if error.status_code == 405 else error.headers
    return await _make_error_response(request, HubError(error.status_code, code, error.detail, headers=headers))


def _list_methods(request: Request) -> list[str]:
    """Return the methods that a path answers to: several routes may have it, each with one of them."""
    routes = (one for one in request.app.routes if one.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in routes for method in route.methods})


async def _answer_disconnect(_: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody is there to read it


async def _answer_os_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    logger.error("the disk is full: %s", error)
    return await _make_error_response(request, disk_full())


async def _answer_crash(request: Request, error: Exception) -> Response:
    # The server logs it, with the traceback.
    failure = HubError(500, "InternalError", "The registry failed to answer; its log says why")
    return await _make_error_response(request, failure)
