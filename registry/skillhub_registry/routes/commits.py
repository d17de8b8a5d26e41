"""Uploading and committing: which files travel how, and the commit itself; history and squashing."""

from __future__ import annotations

import base64
import binascii
from fnmatch import fnmatchcase
from typing import Any

from starlette.responses import JSONResponse, Response

from skillhub_registry import limits
from skillhub_registry.blobs import BlobStore
from skillhub_registry.calls import Call, find_again, parse_json
from skillhub_registry.commits import (
    LARGE_SUFFIXES,
    Author,
    CommitHeader,
    Operation,
    make_commit,
    parse_line,
    squash_branch,
)
from skillhub_registry.database import Connection
from skillhub_registry.errors import bad_request, too_large
from skillhub_registry.largefiles import is_deleted, sum_sizes
from skillhub_registry.names import check_path
from skillhub_registry.pullrequests import (
    PullRequest,
    add_event,
    get_pull_request,
    open_pull_request,
    require_committer,
)
from skillhub_registry.revisions import (
    branch_of,
    pull_request_number,
    resolve_revision,
    target_ref,
    walk_history,
)
from skillhub_registry.routes.discussions import pull_request_url
from skillhub_registry.routes.documents import format_seconds
from skillhub_registry.threads import run_changing, run_reading
from skillhub_registry.trees import File, find_entry, find_files


def preupload(call: Call) -> Response:
    """Answer ``POST R/preupload/{rev}``: for each file whether it travels in the commit or apart."""
    revision, proposes = call.parameters["revision"], call.flag("create_pr")
    _check_committer(call, revision, proposes)
    listed = call.json().get("files")
    if not isinstance(listed, list) or len(listed) > limits.LFS_BATCH:
        raise bad_request(f"files must be a list of at most {limits.LFS_BATCH} files")
    answers = []
    with call.registry.database.read() as connection:
        commit = resolve_revision(connection, call.target.id, revision)
        rules = find_entry(connection, commit.tree, ".gitattributes")
        known = find_files(connection, [rules.id])[rules.id] if rules and not rules.is_folder else None
        patterns = _large_patterns(call.registry.blobs, known)
        for item in listed:
            path, size, sample = _read_preupload(item, call.registry.quotas.file)
            large = size > limits.REGULAR_FILE or b"\0" in sample or _matches(path, patterns)
            answer = {"path": path, "uploadMode": "lfs" if large and size > 0 else "regular", "shouldIgnore": False}
            entry = find_entry(connection, commit.tree, path)
            if entry is not None and not entry.is_folder:
                file = find_files(connection, [entry.id])[entry.id]
                same_mode = file.lfs == (answer["uploadMode"] == "lfs")
                if same_mode and not is_deleted(connection, call.target.id, file):
                    answer["oid"] = file.sha256 if file.lfs else file.id
            answers.append(answer)
    return JSONResponse({"files": answers})


def _read_preupload(item: Any, limit: int) -> tuple[str, int, bytes]:
    if not isinstance(item, dict):
        raise bad_request("Each file must be an object")
    path, size, sample = check_path(item.get("path")), item.get("size"), item.get("sample", "")
    if not isinstance(size, int) or size < 0:
        raise bad_request(f"{path}: the size must be a number of bytes")
    if size > limit:
        raise too_large(f"{path}: a file may have {limit} bytes here, not {size}")
    try:
        return path, size, base64.b64decode(sample)
    except (binascii.Error, TypeError, ValueError) as error:
        raise bad_request(f"{path}: the sample is not base64") from error


def _large_patterns(store: BlobStore, rules: File | None) -> list[str]:
    """Return the patterns that a ``.gitattributes`` sends through LFS, besides the ones always sent."""
    patterns = [f"*{suffix}" for suffix in LARGE_SUFFIXES]
    if rules is None or rules.lfs or rules.size > limits.CARD_METADATA:
        return patterns
    for line in store.read(rules.sha256).decode(errors="replace").splitlines():
        words = line.split()
        if len(words) > 1 and not words[0].startswith("#") and "filter=lfs" in words[1:]:
            patterns.append(words[0].lstrip("/"))
    return patterns


def _matches(path: str, patterns: list[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path if "/" in pattern else name, pattern) for pattern in patterns)


async def commit(call: Call) -> Response:
    """Answer ``POST R/commit/{rev}``: lines of JSON, read as they arrive, in effect all at once.

    With ``create_pr`` the commit is proposed: it is the first one of a new pull request.
    """
    revision, proposes = call.parameters["revision"], call.flag("create_pr")
    ref = target_ref(branch_of(revision) if proposes else revision)
    await run_reading(_check_committer, call, revision, proposes)
    lines = await _read_lines(call)
    if not lines or not isinstance(lines[0], CommitHeader):
        raise bad_request("The first line of a commit must be its header")
    header, operations = lines[0], [line for line in lines[1:] if not isinstance(line, CommitHeader)]
    if len(operations) != len(lines) - 1:
        raise bad_request("A commit has one header")
    if proposes:
        commit_id, proposed = await run_changing(_propose, call, branch_of(revision), header, operations)
        return JSONResponse({**_answer(call, commit_id), "pullRequestUrl": pull_request_url(call, proposed)})
    return JSONResponse(_answer(call, await run_changing(_commit, call, ref, header, operations)))


def _check_committer(call: Call, revision: str, proposes: bool) -> None:
    """Refuse at once what would be refused after the body came."""
    with call.registry.database.read() as connection:
        require_committer(connection, call.account, call.target, revision, proposes=proposes)


def _author(call: Call) -> Author:
    return Author(call.account.account.name, call.sender)


def _commit(call: Call, ref: str, header: CommitHeader, operations: list[Operation]) -> str:
    number = pull_request_number(ref)
    with call.registry.database.write(call.target.id) as connection:
        # Rights may have ended while the body came, and a pull request may have been closed or merged.
        require_committer(connection, find_again(connection, call), call.target, ref, proposes=False)
        commit_id = make_commit(connection, call.registry.blobs, call.target.id, ref, _author(call), header, operations)
        _check_quota(call, connection)
        if number is not None:
            _note_commit(call, connection, get_pull_request(connection, call.target.id, number), header, commit_id)
    return commit_id


def _propose(call: Call, branch: str, header: CommitHeader, operations: list[Operation]) -> tuple[str, PullRequest]:
    with call.registry.database.write(call.target.id) as connection:
        find_again(connection, call)
        made = open_pull_request(
            connection,
            call.target.id,
            call.account,
            title=header.summary[: limits.TITLE],
            description=header.description[: limits.COMMENT],
            branch=branch,
            parent=header.parent,
            status="open",
        )
        commit_id = make_commit(
            connection, call.registry.blobs, call.target.id, made.ref, _author(call), header, operations
        )
        _check_quota(call, connection)
        _note_commit(call, connection, made, header, commit_id)
    return commit_id, made


def _check_quota(call: Call, connection: Connection) -> None:
    """Refuse a commit that makes the repository larger than any may be here."""
    limit = call.registry.quotas.repository
    if limit and sum_sizes(connection, call.target.id) > limit:
        raise too_large(
            f"The large files of {call.target.full_name} would take more than the {limit} bytes allowed here"
        )


def _note_commit(
    call: Call, connection: Connection, pull_request: PullRequest, header: CommitHeader, commit_id: str
) -> None:
    subject = {"subject": header.summary, "oid": commit_id}
    add_event(connection, call.target.id, pull_request, call.account, "commit", subject)


def _answer(call: Call, commit_id: str) -> dict[str, Any]:
    url = f"{call.endpoint}/{call.target.full_name}/commit/{commit_id}"
    return {"success": True, "commitOid": commit_id, "commitUrl": url, "hookOutput": ""}


async def _read_lines(call: Call) -> list[CommitHeader | Operation]:
    """Return the parsed lines; the contents of files are in the store by then, so memory holds one line at most."""
    parsed: list[CommitHeader | Operation] = []
    pending, total = bytearray(), 0

    def parse(complete: bytes) -> None:
        for line in complete.split(b"\n"):
            if line.strip():
                parsed.append(parse_line(line, call.registry.blobs))

    async for chunk in call.request.stream():
        total += len(chunk)
        end = chunk.rfind(b"\n")
        if end >= 0:
            complete = bytes(pending) + chunk[: end + 1]
            pending = bytearray(chunk[end + 1 :])
            await run_changing(parse, complete)
        else:
            pending += chunk
        if total > limits.COMMIT_BODY or len(pending) > limits.COMMIT_LINE:
            raise too_large("The commit is too large; send large files through LFS or Xet, or in several commits")
        if len(parsed) > limits.COMMIT_OPERATIONS:
            raise too_large(f"A commit has at most {limits.COMMIT_OPERATIONS} operations")
    await run_changing(parse, bytes(pending))
    return parsed


def list_commits(call: Call) -> Response:
    """Answer ``GET R/commits/{rev}``, newest first, in pages."""
    page: list[dict[str, Any]] = []
    following: str | None = None
    with call.registry.database.read() as connection:
        start = resolve_revision(connection, call.target.id, call.parameters["revision"])
        for entry in walk_history(connection, call.target.id, start):
            if len(page) == limits.COMMITS_PAGE:
                following = entry.id
                break
            title, message = entry.title, entry.message
            page.append(
                {
                    "id": entry.id,
                    "title": title,
                    "message": message,
                    "authors": [{"user": entry.author, "avatar": ""}],
                    "date": format_seconds(entry.created_at),
                }
            )
    headers = {}
    if following is not None:
        headers["Link"] = f'<{call.endpoint}/api/models/{call.target.full_name}/commits/{following}>; rel="next"'
    return JSONResponse(page, headers=headers)


def squash(call: Call) -> Response:
    """Answer ``POST R/super-squash/{branch}``."""
    body = parse_json(call.body) if call.body else {}
    message = body.get("message") or "Squash the history"
    if not isinstance(message, str) or len(message) > 2000 or "\0" in message:
        raise bad_request("message must be a text of at most 2000 characters")
    branch = branch_of(call.parameters["revision"])
    title = message.encode("utf-8", "replace").decode()
    with call.registry.database.write(call.target.id) as connection:
        squash_branch(connection, call.target.id, branch, call.account.account.name, title)
    return Response("OK")
