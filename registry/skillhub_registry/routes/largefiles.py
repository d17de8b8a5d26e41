"""The large files of a repository: listing them, deleting them for good, copying them to another repository."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from skillhub_registry import limits
from skillhub_registry.calls import Call
from skillhub_registry.copies import copy_large_files
from skillhub_registry.database import Connection
from skillhub_registry.deletions import delete_large_files
from skillhub_registry.errors import bad_request, not_supported, repository_not_found
from skillhub_registry.largefiles import LargeFile, list_large_files
from skillhub_registry.names import is_sha256
from skillhub_registry.repositories import MEMBERS, Repository, find_repository
from skillhub_registry.rights import may_read, may_write, require_proposal, require_write_token
from skillhub_registry.routes.documents import format_milliseconds
from skillhub_registry.routes.paging import next_link


def list_all(call: Call) -> Response:
    """Answer ``GET R/lfs-files``, in pages: what commits of the repository name, on whatever ref."""
    after = call.request.query_params.get("cursor", "")
    if after and not is_sha256(after):
        raise bad_request("The cursor is malformed")
    with call.registry.database.read() as connection:
        found = list_large_files(connection, call.target.id, after=after, limit=limits.LARGE_FILES_PAGE + 1)
    page = found[: limits.LARGE_FILES_PAGE]
    headers = next_link(call, page[-1].sha256) if len(found) > len(page) else {}
    return JSONResponse([_document(file) for file in page], headers=headers)


def delete(call: Call) -> Response:
    """Answer ``POST R/lfs-files/batch``: delete files for good, unless a published release names one."""
    asked = call.json().get("deletions")
    asked = asked if isinstance(asked, dict) else {}
    rewrite = asked.get("rewriteHistory", True)
    sha256s = _read_digests(asked.get("sha"))
    if not isinstance(rewrite, bool):
        raise bad_request("rewriteHistory must be true or false")
    with call.registry.database.write(call.target.id) as connection:
        delete_large_files(connection, call.registry.blobs, call.target.id, sha256s, rewrite=rewrite)
    return JSONResponse({"deleted": len(sha256s)})


def duplicate(call: Call) -> Response:
    """Answer ``POST R/lfs-files/duplicate``: let commits of the caller's to another repository name files of this one."""
    body = call.json()
    files = body.get("files")
    require_write_token(call.caller)
    listed = (
        [file.get("sha256") if isinstance(file, dict) else None for file in files] if isinstance(files, list) else None
    )
    sha256s = _read_digests(listed)
    with call.registry.database.read() as connection:
        target = _find_target(call, connection, body.get("target"))
    writer = require_proposal(call.caller, target)
    sender = MEMBERS if may_write(writer, target) else writer.account.id
    with call.registry.database.write(target.id) as connection:
        copied, missing = copy_large_files(connection, call.target, target, sender, sha256s)
    failed = [{"sha256": sha256, "error": f"{call.target.full_name} has no such file"} for sha256 in missing]
    return JSONResponse({"success": [{"sha256": sha256} for sha256 in copied], "failed": failed})


def _find_target(call: Call, connection: Connection, target: Any) -> Repository:
    name = target.get("name") if isinstance(target, dict) else None
    if isinstance(target, dict) and target.get("type", "model") != "model":
        raise not_supported("This registry holds model repositories only")
    namespace, _, rest = name.partition("/") if isinstance(name, str) else ("", "", "")
    found = find_repository(connection, namespace, rest)
    if found is None or not may_read(call.caller, found):
        raise repository_not_found()
    return found


def _read_digests(listed: Any) -> list[str]:
    if not isinstance(listed, list) or len(listed) > limits.LFS_BATCH or not all(is_sha256(one) for one in listed):
        raise bad_request(f"At most {limits.LFS_BATCH} files must be named, each by its sha256")
    return list(dict.fromkeys(listed))


def _document(file: LargeFile) -> dict[str, Any]:
    return {
        "fileOid": file.sha256,
        "oid": file.sha256,
        "filename": file.path or file.sha256,
        "pushedAt": format_milliseconds(file.pushed_at),
        "ref": file.ref or None,
        "size": file.size,
    }
