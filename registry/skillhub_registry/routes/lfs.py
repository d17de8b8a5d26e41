"""Git LFS uploads, basic and in parts. The links are signed: the client sends no token with the bytes."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from starlette.responses import JSONResponse, Response

from skillhub_registry import limits
from skillhub_registry.blobs import BlobStore, is_kept, keep_blob, write_blob
from skillhub_registry.calls import Call
from skillhub_registry.errors import HubError, bad_request, too_large
from skillhub_registry.names import is_sha256
from skillhub_registry.repositories import MEMBERS
from skillhub_registry.threads import run_changing
from skillhub_registry.uploads import find_upload, receive_body, record_uploads

_MEDIA_TYPE = "application/vnd.git-lfs+json"
_OBJECT, _PART, _COMPLETE = "lfs-object", "lfs-part", "lfs-complete"
_GRANT_SECONDS = 12 * 3600


def batch(call: Call) -> Response:
    """Answer ``POST …/objects/batch``: signed links for what this repository does not have yet."""
    body = call.json()
    objects, transfers = body.get("objects"), body.get("transfers") or ["basic"]
    if body.get("operation") != "upload" or body.get("hash_algo", "sha256") != "sha256":
        raise bad_request("Only uploads of objects named by sha256 go through LFS here; download from resolve/")
    if not isinstance(objects, list) or not isinstance(transfers, list) or len(objects) > limits.LFS_BATCH:
        raise bad_request(f"objects must be a list of at most {limits.LFS_BATCH} objects")
    in_parts = "multipart" in transfers
    asked = [_read_object(item, call.registry.quotas.file) for item in objects]
    for oid, _ in asked:  # what is said to be here stays until the commit comes
        call.registry.blobs.spare(oid)
    with call.registry.database.read() as connection:
        answers = []
        for oid, size in asked:
            answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
            if find_upload(connection, call.target.id, call.sender, oid) is None:
                answer["actions"] = _make_actions(call, oid, size, in_parts)
            answers.append(answer)
    document = {"transfer": "multipart" if in_parts else "basic", "objects": answers, "hash_algo": "sha256"}
    return JSONResponse(document, media_type=_MEDIA_TYPE)


def _read_object(item: Any, limit: int) -> tuple[str, int]:
    oid, size = (item.get("oid"), item.get("size")) if isinstance(item, dict) else (None, None)
    if not is_sha256(oid) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise bad_request("Each object needs an oid (sha256) and a size in bytes")
    if size > limit:
        raise too_large(f"A file may have {limit} bytes here, not {size}")
    return str(oid), size


def _make_actions(call: Call, oid: str, size: int, in_parts: bool) -> dict[str, Any]:
    claims: dict[str, str | int] = {
        "repository": call.target.id,
        "sender": call.sender,
        "oid": oid,
        "size": size,
    }

    def link(kind: str, purpose: str, **more: str | int) -> str:
        grant = call.registry.signer.grant(purpose, {**claims, **more}, _GRANT_SECONDS)
        return f"{call.endpoint}/lfs/{kind}/{grant}"

    part_size = max(call.registry.part_size, -(-size // limits.MULTIPART_PARTS))
    if in_parts and size > part_size:
        upload, count = uuid4().hex, -(-size // part_size)
        header = {"chunk_size": str(part_size)}
        for number in range(1, count + 1):
            length = min(part_size, size - (number - 1) * part_size)
            header[str(number)] = link("part", _PART, upload=upload, number=number, length=length)
        action: dict[str, Any] = {"href": link("complete", _COMPLETE, upload=upload, count=count), "header": header}
    else:
        action = {"href": link("object", _OBJECT)}
    verify = f"{call.endpoint}/{call.target.full_name}.git/info/lfs/objects/verify"
    return {"upload": action, "verify": {"href": verify}}


async def receive_object(call: Call) -> Response:
    """Answer ``PUT`` of a whole object to its signed link."""
    claims = call.registry.signer.check(_OBJECT, call.parameters["grant"])
    with write_blob(call.registry.blobs, claims["size"]) as writer:
        await receive_body(call.request, writer)
        await run_changing(keep_blob, call.registry.blobs, writer, claims["oid"], claims["size"])
    await run_changing(_record, call, claims)
    return Response()


async def receive_part(call: Call) -> Response:
    """Answer ``PUT`` of one part to its signed link."""
    claims = call.registry.signer.check(_PART, call.parameters["grant"])
    store = call.registry.blobs
    with write_blob(store, claims["length"]) as writer:
        await receive_body(call.request, writer)
        if writer.size != claims["length"]:
            raise bad_request(f"The part has {writer.size} bytes where {claims['length']} were announced")
        await run_changing(store.keep_part, claims["upload"], claims["number"], writer)
        return Response(headers={"ETag": f'"{writer.sha256}"'})


def complete_parts(call: Call) -> Response:
    """Answer ``POST`` to the link that ends a multipart upload: join the parts, and verify the whole."""
    claims = call.registry.signer.check(_COMPLETE, call.parameters["grant"])
    store = call.registry.blobs
    try:
        if not is_kept(store, claims["oid"]):
            _join_parts(store, claims)
    finally:  # also when somebody else sent the same file meanwhile, or the parts are of no use
        store.drop_parts(claims["upload"])
    _record(call, claims)
    return JSONResponse({"success": True})


def _join_parts(store: BlobStore, claims: dict[str, Any]) -> None:
    with write_blob(store, claims["size"]) as writer:
        for piece in store.read_parts(claims["upload"], claims["count"]):
            writer.write(piece)
        keep_blob(store, writer, claims["oid"], claims["size"])


def verify(call: Call) -> Response:
    """Answer ``POST …/objects/verify``: the object arrived."""
    oid, size = _read_object(call.json(), call.registry.quotas.file)
    with call.registry.database.read() as connection:
        if find_upload(connection, call.target.id, call.sender, oid) != size:
            raise HubError(404, "LfsObjectMissing", f"No object of {size} bytes with sha256 {oid} was uploaded here")
    return JSONResponse({"oid": oid, "size": size})


def _record(call: Call, claims: dict[str, Any]) -> None:
    with call.registry.database.write(claims["repository"]) as connection:
        record_uploads(
            connection, claims["repository"], claims.get("sender", MEMBERS), [(claims["oid"], claims["size"])]
        )
