"""Who am I?"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from skillhub_registry.calls import Call
from skillhub_registry.routes.documents import format_seconds


def whoami(call: Call) -> Response:
    """Answer ``GET /api/whoami-v2``."""
    caller = call.account
    organizations: list[dict[str, Any]] = [
        {
            "type": "org",
            "id": str(organization.id),
            "name": organization.name,
            "fullname": organization.name,
            "email": None,
            "canPay": False,
            "avatarUrl": "",
            "roleInOrg": "write",
            "isEnterprise": False,
        }
        for organization in caller.organizations
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
