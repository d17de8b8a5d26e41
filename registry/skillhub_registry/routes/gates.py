"""Gated repositories: asking for access, and deciding on what was asked for."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from skillhub_registry import limits
from skillhub_registry.accounts import find_account
from skillhub_registry.calls import Call
from skillhub_registry.errors import HubError, bad_request
from skillhub_registry.gates import STATUSES, AccessRequest, ask_access, grant_access, handle_request, list_requests
from skillhub_registry.routes.documents import format_milliseconds
from skillhub_registry.routes.paging import next_link, read_start


def ask(call: Call) -> Response:
    """Answer ``POST /{repository}/ask-access``: the caller asks for access, or has it where the gate is automatic."""
    with call.registry.database.write(call.target.id) as connection:
        status = ask_access(connection, call.target, call.account.account)
    return JSONResponse({"status": status})


def list_all(call: Call) -> Response:
    """Answer ``GET R/user-access-request/{status}``, in pages."""
    status = call.parameters["status"]
    if status not in STATUSES:
        raise bad_request(f"The status must be one of {', '.join(STATUSES)}")
    start = read_start(call)
    with call.registry.database.read() as connection:
        found = list_requests(connection, call.target, status, start=start, limit=limits.ACCESS_REQUESTS_PAGE + 1)
    page = found[: limits.ACCESS_REQUESTS_PAGE]
    headers = next_link(call, start + len(page)) if len(found) > len(page) else {}
    return JSONResponse([_document(one) for one in page], headers=headers)


def handle(call: Call) -> Response:
    """Answer ``POST R/user-access-request/handle``: accept, reject, or make pending again."""
    body = call.json()
    status, user, request = body.get("status"), body.get("user"), body.get("requestId")
    if status not in STATUSES:
        raise bad_request(f"status must be one of {', '.join(STATUSES)}")
    if not (isinstance(user, str) and request is None) and not (isinstance(request, str) and user is None):
        raise bad_request("Either user or requestId must be given")
    with call.registry.database.write(call.target.id) as connection:
        handle_request(connection, call.target, str(status), user=user, public_id=request)
    return Response("OK")


def grant(call: Call) -> Response:
    """Answer ``POST R/user-access-request/grant``."""
    name = call.json().get("user")
    with call.registry.database.write(call.target.id) as connection:
        account = find_account(connection, name) if isinstance(name, str) else None
        if account is None or account.kind != "user":
            raise HubError(404, "NotFound", f"There is no user {ascii(name)[:100]}")
        grant_access(connection, call.target, account)
    return JSONResponse({"user": account.name, "status": "accepted"})


def _document(request: AccessRequest) -> dict[str, object]:
    return {
        "requestId": request.public_id,
        "user": {"user": request.user, "fullname": request.user, "email": None},
        "status": request.status,
        "timestamp": format_milliseconds(request.created_at),
        "fields": None,
    }
