"""Downloading: plain HTTP with ranges, no Xet headers (without them the client uses plain HTTP).

From a folder there is never a redirect; large files that are in a bucket are fetched there, by a signed link.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator, Mapping
from typing import BinaryIO, Final
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from skillhub_registry.blobs import PIECE
from skillhub_registry.calls import Call, Permission, admit
from skillhub_registry.connections import ZERO_COPY
from skillhub_registry.errors import HubError, entry_not_found
from skillhub_registry.largefiles import is_deleted
from skillhub_registry.names import check_path
from skillhub_registry.revisions import Commit, resolve_revision
from skillhub_registry.trees import File, find_entry, find_files

COUNTED_FILES = frozenset(["adapter_config.json", "config.json", "skillpack.json"])
"""As on the Hub, fetching one file that every use of a model needs counts as the download; the others do not."""

_LARGE: Final = 512 * 1024
"""Bytes from which on it costs less to have the kernel send a file than to read it."""

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def resolve(call: Call) -> Response:
    """Answer ``GET`` and ``HEAD /{repository}/resolve/{rev}/{path}``.

    A repository that was moved is answered for by its new name, so that whoever asked sees that it moved.
    """
    path = check_path(call.parameters["path"])
    asked = f"{call.parameters['namespace']}/{call.parameters['name']}"
    if asked.lower() != call.target.full_name.lower():
        return _send_on(call)
    with call.registry.database.read() as connection:
        commit = resolve_revision(connection, call.target.id, call.parameters["revision"])
        entry = find_entry(connection, commit.tree, path)
        if entry is None or entry.is_folder:
            raise entry_not_found(f"{path} does not exist on {call.parameters['revision']}", commit.id)
        file = find_files(connection, [entry.id])[entry.id]
        missing = is_deleted(connection, call.target.id, file)
        if missing and (not call.target.upstream or call.registry.mirror is None):
            why = "was not mirrored so far" if call.target.upstream else "was deleted for good"
            raise entry_not_found(f"{path} {why}", commit.id)
    headers = _make_headers(file, path, commit.id)
    if call.request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(file.size)})
    if path.rpartition("/")[2] in COUNTED_FILES and "x-hf-download-counter" in call.request.headers:
        call.registry.downloads.count(call.target.id)
    same = call.request.headers.get("if-range", headers["ETag"]) == headers["ETag"]
    first, last, status = _choose_range(call.request.headers.get("range") if same else None, file.size)
    if missing and (arriving := _follow_arrival(call, commit, path, file, first, last - first + 1)) is not None:
        return StreamingResponse(arriving, status_code=status, headers=_with_range(headers, first, last, file, status))
    # A range that is ignored here must not reach the storage, which may know what to do with it.
    plain = file.lfs and (status == 206 or "range" not in call.request.headers)
    link = call.registry.blobs.make_link(file.sha256, headers) if plain else None
    if link is not None:
        return _redirect(link, headers)
    headers = _with_range(headers, first, last, file, status)
    return _send(call, file.sha256, first, last - first + 1, status, headers)


class _FileResponse(Response):
    """A part of an open file, which the server has the kernel send."""

    def __init__(self, file: BinaryIO, first: int, count: int, status_code: int, headers: Mapping[str, str]) -> None:
        super().__init__(status_code=status_code, headers=headers)
        self._file = file
        self._part = {"offset": first, "count": count}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": ZERO_COPY, "file": self._file, **self._part})


def _send(call: Call, sha256: str, first: int, count: int, status_code: int, headers: Mapping[str, str]) -> Response:
    store = call.registry.blobs
    if count >= _LARGE and ZERO_COPY in call.request.scope.get("extensions", {}):
        file = store.open_local(sha256)
        if file is not None:
            return _FileResponse(file, first, count, status_code, headers)
    pieces = store.read_pieces(sha256, first, count)
    if count <= PIECE:  # one read here costs less than handing pieces from thread to thread
        return Response(b"".join(pieces), status_code=status_code, headers=headers)
    return StreamingResponse(pieces, status_code=status_code, headers=headers)


def _with_range(headers: dict[str, str], first: int, last: int, file: File, status: int) -> dict[str, str]:
    headers["Content-Length"] = str(last - first + 1)
    if status == 206:
        headers["Content-Range"] = f"bytes {first}-{last}/{file.size}"
    return headers


def _follow_arrival(
    call: Call, commit: Commit, path: str, file: File, start: int, length: int
) -> AsyncIterator[bytes] | None:
    """Return bytes of a large file as they come from the mirrored Hub, or None where the file has come by now."""
    mirror = call.registry.mirror
    assert mirror is not None
    arrival, opened = mirror.fetch(call.target, commit, path, file), None
    if arrival is not None:
        with mirror.waiting():
            opened = arrival.open(to_its_end=start + length == file.size)
    try:
        admit(call, Permission.DOWNLOAD, sessions=True)  # fetching it may have told that it is gated by now
    except HubError:
        if opened is not None:
            opened.close()
        raise
    return arrival.follow(opened, start, length, mirror.sending) if arrival and opened else None


def _send_on(call: Call) -> Response:
    """Send the client to the same file under the repository's present name; a relative address keeps it on this host."""
    rest = call.request.scope["path"].split("/", 3)[3]  # as it was sent: %2F stays what it is
    query = f"?{call.request.url.query}" if call.request.url.query else ""
    return Response(status_code=307, headers={"Location": f"/{call.target.full_name}/{rest}{query}"})


def _redirect(link: str, headers: Mapping[str, str]) -> Response:
    """Send the client to where the bytes are; what it must know of the file, it hears from here."""
    kept = {name: headers[name] for name in ("X-Repo-Commit", "X-Linked-Size", "X-Linked-ETag")}
    return Response(status_code=302, headers={**kept, "Location": link, "Cache-Control": "no-store"})


def _make_headers(file: File, path: str, commit: str) -> dict[str, str]:
    name = quote(path.rpartition("/")[2], safe="")
    media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
    headers = {
        "X-Repo-Commit": commit,
        "ETag": f'"{file.sha256 if file.lfs else file.id}"',
        "Accept-Ranges": "bytes",
        # Files are other people's: a browser must not run them in this origin's name.
        "Content-Type": media_type if media_type.startswith(("image/", "application/json")) else _plain(media_type),
        "Content-Disposition": f"{_disposition(media_type)}; filename*=UTF-8''{name}",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    if file.lfs:
        headers["X-Linked-Size"] = str(file.size)
        headers["X-Linked-ETag"] = headers["ETag"]
    return headers


def _disposition(media_type: str) -> str:
    """Say whether a browser may show a file by itself: not what can hold programs, though a page may show a picture of it."""
    shown = media_type.startswith(("image/", "text/")) or media_type == "application/json"
    return "inline" if shown and not media_type.endswith(("html", "xml", "javascript")) else "attachment"


def _plain(media_type: str) -> str:
    return "text/plain; charset=utf-8" if media_type.startswith("text/") else "application/octet-stream"


def _choose_range(header: str | None, size: int) -> tuple[int, int, int]:
    """Return the first and last byte to send, and the status.

    What is not one plain range of bytes is ignored, as RFC 9110 (14.2) allows.

    Raises:
        HubError: 416, the range begins after the end.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.groups() == ("", ""):
        return 0, size - 1, 200
    start, end = match.groups()
    if not start:
        first, last = max(size - int(end), 0), size - 1
    else:
        first, last = int(start), min(int(end), size - 1) if end else size - 1
    if start and end and int(end) < int(start):
        return 0, size - 1, 200
    if first >= size:
        message = f"The file has {size} bytes"
        raise HubError(416, "RangeNotSatisfiable", message, headers={"Content-Range": f"bytes */{size}"})
    return first, last, 206
