"""Users and organisations: who am I, and who are they?"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from skillhub_registry import limits
from skillhub_registry.accounts import Account, find_account, list_members, list_memberships
from skillhub_registry.calls import Call
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError, forbidden
from skillhub_registry.largefiles import sum_sizes
from skillhub_registry.repositories import Search, count_repositories, search_repositories
from skillhub_registry.routes.documents import format_milliseconds, format_seconds
from skillhub_registry.routes.paging import next_link, read_start


def whoami(call: Call) -> Response:
    """Answer ``GET /api/whoami-v2``."""
    caller = call.account
    organizations: list[dict[str, Any]] = [
        {
            "type": "org",
            "id": str(one.organization.id),
            "name": one.organization.name,
            "fullname": one.organization.name,
            "email": None,
            "canPay": False,
            "avatarUrl": "",
            "roleInOrg": one.role,
            "isEnterprise": False,
        }
        for one in caller.memberships
    ]
    return JSONResponse(
        {
            "type": "user",
            "id": str(caller.account.id),
            "name": caller.account.name,
            "fullname": caller.account.name,
            "email": None,
            "emailVerified": False,
            "canPay": False,
            "isPro": False,
            "periodEnd": None,
            "avatarUrl": "",
            "orgs": organizations,
            "auth": {
                "type": "access_token",
                "accessToken": {
                    "displayName": caller.token.name,
                    "role": caller.token.scope,
                    "createdAt": format_seconds(caller.token.created_at),
                },
            },
        }
    )


def list_own_repositories(call: Call) -> Response:
    """Answer ``GET /api/settings/repositories``: the caller's own, with what they take, in pages."""
    return _list_storage(call, call.account.account)


def list_repositories(call: Call) -> Response:
    """Answer ``GET /api/organizations/{organization}/settings/repositories``, for its members."""
    with call.registry.database.read() as connection:
        organization = _get_account(connection, call.parameters["organization"], "organization")
    if organization.id not in call.account.namespace_ids:
        raise forbidden(f"{call.account.account.name} is no member of {organization.name}")
    return _list_storage(call, organization)


def _list_storage(call: Call, namespace: Account) -> Response:
    cursor = call.request.query_params.get("cursor")
    search = Search(author=namespace.name, readable=call.account.namespace_ids, cursor=cursor)
    with call.registry.database.read() as connection:
        page, following = search_repositories(connection, search)
        documents = [
            {
                "id": one.full_name,
                "type": "model",
                "updatedAt": format_milliseconds(one.last_modified),
                "visibility": "private" if one.private else "public",
                "storage": sum_sizes(connection, one.id),
                "storagePercent": 0,
            }
            for one in page
        ]
    return JSONResponse(documents, headers=next_link(call, following) if following else {})


def show_user(call: Call) -> Response:
    """Answer ``GET /api/users/{user}/overview``: what anybody may see of a user."""
    with call.registry.database.read() as connection:
        user = _get_account(connection, call.parameters["user"], "user")
        document = _user_document(user)
        document["numModels"] = count_repositories(connection, user.id, _readable(call))
        document["orgs"] = [_organization_document(one.organization) for one in list_memberships(connection, user)]
    return JSONResponse(document)


def show_organization(call: Call) -> Response:
    """Answer ``GET /api/organizations/{organization}/overview``."""
    with call.registry.database.read() as connection:
        organization = _get_account(connection, call.parameters["organization"], "organization")
        document = _organization_document(organization)
        document["numUsers"] = len(list_members(connection, organization))
        document["numModels"] = count_repositories(connection, organization.id, _readable(call))
    return JSONResponse(document)


def list_organization_members(call: Call) -> Response:
    """Answer ``GET /api/organizations/{organization}/members``, in pages; members see each other's roles."""
    start = read_start(call)
    with call.registry.database.read() as connection:
        organization = _get_account(connection, call.parameters["organization"], "organization")
        members = list(list_members(connection, organization).items())
    inside = call.caller is not None and organization.id in call.caller.namespace_ids
    page = members[start : start + limits.MEMBERS_PAGE]
    documents = [
        {"user": name, "fullname": name, "avatarUrl": "", "type": "user", **({"role": role} if inside else {})}
        for name, role in page
    ]
    end = start + len(page)
    return JSONResponse(documents, headers=next_link(call, end) if end < len(members) else {})


def _get_account(connection: Connection, name: str, kind: str) -> Account:
    account = find_account(connection, name)
    if account is None or account.kind != kind:
        raise HubError(404, "NotFound", f"There is no {kind} {ascii(name)[:100]}")
    return account


def _readable(call: Call) -> frozenset[int]:
    return call.caller.namespace_ids if call.caller else frozenset()


def _user_document(user: Account) -> dict[str, Any]:
    return {
        "user": user.name,
        "fullname": user.name,
        "avatarUrl": "",
        "type": "user",
        "createdAt": format_seconds(user.created_at),
        "numDatasets": 0,
        "numSpaces": 0,
    }


def _organization_document(organization: Account) -> dict[str, Any]:
    return {
        "name": organization.name,
        "fullname": organization.name,
        "avatarUrl": "",
        "numDatasets": 0,
        "numSpaces": 0,
        "createdAt": format_seconds(organization.created_at),
    }
