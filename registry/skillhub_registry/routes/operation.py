"""What operators ask: is it ready, and what did it do?"""

from __future__ import annotations

from starlette.responses import JSONResponse, PlainTextResponse, Response

from skillhub_registry.calls import Call
from skillhub_registry.metrics import MEDIA_TYPE
from skillhub_registry.openapi import describe_endpoints

_NO_BLOB = "0" * 64


def check_readiness(call: Call) -> Response:
    """Answer ``GET /readyz``: the database and the storage can be used; 503 where one cannot."""
    with call.registry.database.read() as connection:
        connection.execute("SELECT 1").fetchone()
    call.registry.blobs.has(_NO_BLOB)
    return PlainTextResponse("ready")


def describe_routes(call: Call) -> Response:
    """Answer ``GET /openapi.json``: every route, and what it asks of its caller."""
    return JSONResponse(describe_endpoints(call.request.app.state.endpoints))


def show_metrics(call: Call) -> Response:
    """Answer ``GET /metrics``."""
    return Response(call.registry.metrics.render(call.registry.blobs), media_type=MEDIA_TYPE)
