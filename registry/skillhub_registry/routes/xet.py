"""The sink for Xet uploads: a token for it, xorbs, and shards that turn them into files."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import JSONResponse, Response

from skillhub_registry import limits
from skillhub_registry.blobs import BlobWriter, keep_blob, write_blob
from skillhub_registry.calls import Call, read_body
from skillhub_registry.errors import HubError, bad_request, too_large, unauthorized
from skillhub_registry.names import is_sha256
from skillhub_registry.pullrequests import require_committer
from skillhub_registry.repositories import MEMBERS
from skillhub_registry.threads import run_changing
from skillhub_registry.uploads import find_xorb, note_use, receive_body, record_uploads, record_xorb
from skillhub_registry.xet import ShardFile, XetError, Xorb, opening_xorbs, parse_shard, parse_xorb, rebuild_file

_PURPOSE = "xet-write"
_GRANT_SECONDS = 3600


@dataclass(frozen=True)
class _Grant:
    """What an access token allows: to send files to a repository as this sender, and xorbs as this account."""

    repository: int
    sender: int
    account: int


def grant_writing(call: Call) -> Response:
    """Answer ``GET R/xet-write-token/{rev}``: where to send chunks, and with which access token."""
    revision, proposes = call.parameters["revision"], call.flag("create_pr")
    with call.registry.database.read() as connection:
        require_committer(connection, call.account, call.target, revision, proposes=proposes)
    claims = {"repository": call.target.id, "sender": call.sender, "account": call.account.account.id}
    grant = call.registry.signer.grant(_PURPOSE, claims, _GRANT_SECONDS)
    url, expires = f"{call.endpoint}/xet", int(time.time()) + _GRANT_SECONDS
    headers = {
        "X-Xet-Cas-Url": url,
        "X-Xet-Access-Token": grant,
        "X-Xet-Token-Expiration": str(expires),
    }
    return JSONResponse({"casUrl": url, "accessToken": grant, "exp": expires}, headers=headers)


def find_chunk(call: Call) -> Response:
    """Answer ``GET v1/chunks/…``: whether somebody has sent a chunk is told to nobody."""
    raise HubError(404, "NotFound", "No shard is known for this chunk")


def refuse_presigning(call: Call) -> Response:
    """Answer ``POST v1/xorb-grants/…``: xorbs are sent here, not elsewhere."""
    raise HubError(404, "NotFound", "Send the xorb to this registry")


def ignore_telemetry(call: Call) -> Response:
    """Answer ``POST v1/telemetry``."""
    return JSONResponse({})


async def receive_xorb(call: Call) -> Response:
    """Answer ``POST v1/xorbs/…``: keep a xorb for the shards to come, this upload's and later ones'."""
    grant = _check_grant(call)
    xorb_hash = call.parameters["hash"].lower()
    if not is_sha256(xorb_hash):
        raise bad_request("A xorb's hash has 64 hexadecimal digits")
    with write_blob(call.registry.blobs, limits.XORB) as writer:
        await receive_body(call.request, writer)
        await run_changing(_keep_xorb, call, writer, grant, xorb_hash)
    return JSONResponse({"was_inserted": True})


def _keep_xorb(call: Call, writer: BlobWriter, grant: _Grant, xorb_hash: str) -> None:
    writer.flush()
    if writer.size == 0:
        raise XetError("The xorb is empty")
    with writer.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        parse_xorb(data)
    sha256 = keep_blob(call.registry.blobs, writer)
    with call.registry.database.write(grant.repository) as connection:
        record_xorb(connection, grant.account, xorb_hash, sha256)


async def receive_shard(call: Call) -> Response:
    """Answer ``POST v1/shards``: rebuild the files, verify their sha256, and let the repository refer to them."""
    grant = _check_grant(call)
    body = await read_body(call.request, limits.SHARD)
    await run_changing(_rebuild_files, call, body, grant)
    return JSONResponse({"result": 1})


def _rebuild_files(call: Call, body: bytes, grant: _Grant) -> None:
    def locate(xorb_hash: str) -> AbstractContextManager[Path]:
        with call.registry.database.read() as connection:
            sha256 = find_xorb(connection, grant.account, xorb_hash)
        if sha256 is None:
            raise XetError(f"The shard refers to the xorb {xorb_hash}, which was not sent")
        return call.registry.blobs.open_file(sha256)

    files = parse_shard(body)
    limit = call.registry.quotas.file
    if any(file.size > limit for file in files):
        raise too_large(f"A file may have {limit} bytes here, and the shard describes a larger one")
    with opening_xorbs(locate) as open_xorb:
        for file in files:
            _rebuild_file(call, file, open_xorb)
    with call.registry.database.write(grant.repository) as connection:
        record_uploads(connection, grant.repository, grant.sender, [(file.sha256, file.size) for file in files])
        note_use(connection, (term.xorb for file in files for term in file.terms))


def _rebuild_file(call: Call, file: ShardFile, open_xorb: Callable[[str], Xorb]) -> None:
    with write_blob(call.registry.blobs, file.size) as writer:
        for piece in rebuild_file(file, open_xorb):
            writer.write(piece)
        keep_blob(call.registry.blobs, writer, file.sha256, file.size)


def _check_grant(call: Call) -> _Grant:
    """Return what the access token that ``xet-write-token`` gave out is for."""
    scheme, _, grant = call.request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise unauthorized("This needs an access token from xet-write-token")
    claims = call.registry.signer.check(_PURPOSE, grant.strip())
    return _Grant(int(claims["repository"]), int(claims.get("sender", MEMBERS)), int(claims["account"]))
