"""Repositories: create, delete, move, settings and access checks."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from skillhub_registry.accounts import Account, find_account
from skillhub_registry.blobs import put_blob
from skillhub_registry.calls import Call
from skillhub_registry.cards import CardError, read_metadata
from skillhub_registry.commits import GITATTRIBUTES, make_first_commit
from skillhub_registry.copies import copy_repository
from skillhub_registry.database import Connection
from skillhub_registry.errors import (
    HubError,
    bad_request,
    conflict,
    forbidden,
    not_supported,
    repository_not_found,
)
from skillhub_registry.gates import AUTOMATIC, MANUAL
from skillhub_registry.names import check_account_name, check_repository_name
from skillhub_registry.repositories import (
    Repository,
    create_repository,
    delete_repository,
    find_repository,
    move_repository,
    set_gated,
    set_private,
)
from skillhub_registry.rights import may_read, require_administration, require_creation, require_write_token


def create(call: Call) -> Response:
    """Answer ``POST /api/repos/create``; a 409 also names the repository's address."""
    body = call.json()
    _require_model(body)
    private = _read_visibility(body)
    put_blob(call.registry.blobs, GITATTRIBUTES)
    with call.registry.database.write() as connection:
        owner = _writable_namespace(call, connection, body.get("organization"))
        name = check_repository_name(body.get("name"))
        existing = find_repository(connection, owner.name, name)
        if existing is not None and existing.full_name.lower() == f"{owner.name}/{name}".lower():
            url = f"{call.endpoint}/{existing.full_name}"
            raise conflict(f"You already created this model repo: {existing.full_name}", url=url)
        repository = create_repository(connection, owner, name, bool(private), call.account.account)
        make_first_commit(connection, repository.id, call.account.account.name)
    document = {"url": f"{call.endpoint}/{repository.full_name}", "name": repository.full_name}
    return JSONResponse({**document, "id": repository.public_id, "private": repository.private})


def delete(call: Call) -> Response:
    """Answer ``DELETE /api/repos/delete``."""
    body = call.json()
    _require_model(body)
    with call.registry.database.write() as connection:
        namespace = body.get("organization") or call.account.account.name
        repository = _administered_repository(call, connection, namespace, body.get("name"))
        delete_repository(connection, repository)
    return Response("OK")


def move(call: Call) -> Response:
    """Answer ``POST /api/repos/move``; the old name keeps working until somebody takes it."""
    body = call.json()
    _require_model(body)
    source, target = (_split_full_name(body.get(key)) for key in ("fromRepo", "toRepo"))
    with call.registry.database.write() as connection:
        repository = _administered_repository(call, connection, *source)
        owner = _writable_namespace(call, connection, target[0])
        move_repository(connection, repository, owner, target[1])
    return Response("OK")


def duplicate(call: Call) -> Response:
    """Answer ``POST R/duplicate``: a repository of its own with what this one has; a 409 also contains ``url``."""
    body = call.json()
    private = _read_visibility(body)
    writer = require_write_token(call.caller)
    if call.target.upstream:
        raise not_supported(f"{call.target.full_name} is a mirror: download it, and upload it under another name")
    namespace, name = _split_full_name(body.get("repository"))
    with call.registry.database.write() as connection:
        owner = _writable_namespace(call, connection, namespace)
        existing = find_repository(connection, owner.name, check_repository_name(name))
        if existing is not None and existing.full_name.lower() == f"{owner.name}/{name}".lower():
            raise conflict(f"{existing.full_name} exists already", url=f"{call.endpoint}/{existing.full_name}")
        hidden = call.target.private if private is None else private
        made = copy_repository(connection, call.target, owner, name, private=hidden, creator=writer.account)
    return JSONResponse({"url": f"{call.endpoint}/{made.full_name}", "filesCopyPending": False})


def change_settings(call: Call) -> Response:
    """Answer ``PUT R/settings``: visibility, and the gate."""
    body = call.json()
    private, gate = _read_visibility(body), _read_gate(body)
    with call.registry.database.write(call.target.id) as connection:
        if private is not None:
            set_private(connection, call.target, private)
        if gate is not None:
            set_gated(connection, call.target, gate)
    visible = call.target.private if private is None else private
    now_gated = (call.target.gated if gate is None else gate) or False
    return JSONResponse({"private": visible, "visibility": "private" if visible else "public", "gated": now_gated})


def check_access(call: Call) -> Response:
    """Answer ``GET R/auth-check`` and ``R/auth-check/write``: whoever gets here may."""
    return Response("OK")


def refuse_other(call: Call) -> Response:
    """Answer for what is never here: models without a namespace, datasets, spaces."""
    raise repository_not_found()


def refuse_unknown(call: Call) -> Response:
    """Answer for what the API does not have; without this, its paths would look like those of repositories' pages."""
    raise HubError(404, "NotFound", "Not Found")


def validate_card(call: Call) -> Response:
    """Answer ``POST /api/validate-yaml``."""
    content = call.json().get("content")
    if not isinstance(content, str):
        raise bad_request("content must be the text of a README.md")
    try:
        read_metadata(content)
    except CardError as error:
        problem = {"message": str(error)}
        raise HubError(400, "InvalidCard", str(error), body={"errors": [problem], "warnings": []}) from error
    return JSONResponse({"errors": [], "warnings": []})


def _require_model(body: dict[str, Any]) -> None:
    if body.get("type") not in (None, "model"):
        raise not_supported("This registry holds model repositories only")


def _read_visibility(body: dict[str, Any]) -> bool | None:
    """Return whether the repository is to be private, or None where nothing is said."""
    visibility, private = body.get("visibility"), body.get("private")
    if visibility is None and isinstance(private, bool):
        return private
    if visibility is None and private is None:
        return None
    if visibility not in ("public", "private"):
        raise bad_request("visibility must be public or private")
    return bool(visibility == "private")


def _read_gate(body: dict[str, Any]) -> str | None:
    """Return the gate to be, empty for none, or None where nothing is said."""
    gate = body.get("gated")
    if gate is None:
        return None
    if gate is not False and gate not in (AUTOMATIC, MANUAL):
        raise bad_request(f"gated must be {AUTOMATIC}, {MANUAL} or false")
    return gate or ""


def _split_full_name(name: object) -> tuple[str, str]:
    namespace, separator, rest = name.partition("/") if isinstance(name, str) else ("", "", "")
    if not separator or not namespace or not rest:
        raise bad_request("Repositories are named as namespace/name")
    return namespace, rest


def _writable_namespace(call: Call, connection: Connection, name: object) -> Account:
    """Return the namespace of that name, the caller's own by default, if the caller may make repositories there."""
    if name is None or name == "":
        account: Account | None = call.account.account
    else:
        account = find_account(connection, name) if isinstance(name, str) else None
    if account is None:
        raise forbidden(_say_how_to_make(name, call.account.account.name))
    require_creation(call.account, account)
    return account


def _say_how_to_make(name: object, member: str) -> str:
    said = f"There is no user or organisation {ascii(name)[:100]} here"
    try:
        return (
            f"{said}; on the registry's machine: skillhub-registry org add {check_account_name(name)} --member {member}"
        )
    except HubError:
        return said


def _administered_repository(call: Call, connection: Connection, namespace: object, name: object) -> Repository:
    found = (
        find_repository(connection, namespace, name) if isinstance(namespace, str) and isinstance(name, str) else None
    )
    if found is None or not may_read(call.account, found):
        raise repository_not_found()
    require_administration(call.account, found)
    return found
