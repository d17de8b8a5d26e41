"""Making a commit: the lines that the client sends, and the one transaction that puts them into effect."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from skillhub_registry import git, limits
from skillhub_registry.blobs import BlobStore, put_blob
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError, bad_request, entry_not_found, revision_not_found, too_large
from skillhub_registry.indexing import index_files
from skillhub_registry.largefiles import is_deleted, record_large_files
from skillhub_registry.names import check_path, is_sha256
from skillhub_registry.published import check_published
from skillhub_registry.repositories import MEMBERS
from skillhub_registry.revisions import (
    BRANCH,
    DEFAULT_BRANCH,
    DEFAULT_REF,
    create_ref,
    find_ref,
    insert_commit,
    move_ref,
    pull_request_number,
    resolve_revision,
    stale_parent,
)
from skillhub_registry.trees import File, find_files, read_files
from skillhub_registry.uploads import find_upload

# fmt: off
LARGE_SUFFIXES = (
    ".7z", ".bin", ".bz2", ".ckpt", ".gguf", ".gz", ".h5", ".joblib", ".model",
    ".msgpack", ".npy", ".npz", ".onnx", ".parquet", ".pb", ".pickle", ".pkl", ".pt",
    ".pth", ".safetensors", ".tar", ".tgz", ".tflite", ".wasm", ".xz", ".zip", ".zst",
)
# fmt: on
"""Files of these names go through LFS or Xet whatever their size."""

GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES).encode()


@dataclass(frozen=True)
class Author:
    """Who makes a commit: the name that it bears, and whose uploads it may refer to (see ``repositories.MEMBERS``)."""

    name: str
    sender: int = MEMBERS


@dataclass(frozen=True)
class CommitHeader:
    """The first line: ``parent`` is the head that the client saw, or the beginning of its id."""

    summary: str
    description: str = ""
    parent: str | None = None


@dataclass(frozen=True)
class AddFile:
    """A file whose content came with the commit and is in the store."""

    path: str
    file: File


@dataclass(frozen=True)
class AddLargeFile:
    """A file that was uploaded before; ``size`` may be left out by a copy."""

    path: str
    sha256: str
    size: int | None


@dataclass(frozen=True)
class DeleteFile:
    """A file to remove."""

    path: str


@dataclass(frozen=True)
class DeleteFolder:
    """A folder to remove with everything in it."""

    path: str


Operation = AddFile | AddLargeFile | DeleteFile | DeleteFolder


def parse_line(line: bytes, store: BlobStore) -> CommitHeader | Operation:
    """Return what one line of a commit says; a file's content goes into the store.

    Raises:
        HubError: 400 for anything malformed, 413 for a file too large to travel in a commit.
    """
    try:
        item = json.loads(line)
        key, value = item["key"], item["value"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise bad_request("A line of the commit is not JSON with a key and a value") from error
    if not isinstance(value, dict):
        raise bad_request("The value of a commit's line must be an object")
    if key == "header":
        return _parse_header(value)
    if key == "file":
        return _parse_file(value, store)
    if key == "lfsFile":
        return _parse_large_file(value)
    if key == "deletedFile":
        return DeleteFile(check_path(value.get("path")))
    if key == "deletedFolder":
        path = value.get("path")
        return DeleteFolder(check_path(path.rstrip("/") if isinstance(path, str) else path))
    raise bad_request(f"Unknown kind of line in the commit: {ascii(key)[:80]}")


def _parse_header(value: dict[str, Any]) -> CommitHeader:
    summary, description, parent = value.get("summary"), value.get("description") or "", value.get("parentCommit")
    if not isinstance(summary, str) or not summary.strip() or not isinstance(description, str):
        raise bad_request("The commit's header needs a summary, which must not be empty")
    if len(summary) > 2000 or len(description) > 100_000 or "\0" in summary + description:
        raise bad_request("The commit's summary or description is too long, or holds a NUL")
    if parent is not None and not (isinstance(parent, str) and 5 <= len(parent) <= 40 and parent.isalnum()):
        raise bad_request("parentCommit must be a commit id")
    # What cannot be encoded (lone surrogates) cannot be in a git object.
    text = summary.encode("utf-8", "replace").decode(), description.encode("utf-8", "replace").decode()
    return CommitHeader(*text, parent.lower() if parent else None)


def _parse_file(value: dict[str, Any], store: BlobStore) -> AddFile:
    path, content, encoding = check_path(value.get("path")), value.get("content"), value.get("encoding", "utf-8")
    if not isinstance(content, str) or encoding not in ("base64", "utf-8"):
        raise bad_request(f"{path}: content must be text, its encoding base64 or utf-8")
    try:
        data = base64.b64decode(content, validate=True) if encoding == "base64" else content.encode()
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{path}: the content is not valid {encoding}") from error
    if len(data) > limits.REGULAR_FILE:
        raise too_large(f"{path} is larger than {limits.REGULAR_FILE} bytes: it must be uploaded as a large file")
    if git.is_lfs_pointer(data):
        # Otherwise a pointer's text would give access to a file that its author only knows the digest of.
        raise bad_request(f"{path} is a Git LFS pointer, not the file itself; upload the file")
    return AddFile(path, File(git.object_id("blob", data), put_blob(store, data), len(data), False))


def _parse_large_file(value: dict[str, Any]) -> AddLargeFile:
    path, oid, size = check_path(value.get("path")), value.get("oid"), value.get("size")
    if value.get("algo", "sha256") != "sha256" or not is_sha256(oid):
        raise bad_request(f"{path}: a large file is named by its sha256")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise bad_request(f"{path}: the size must be a number of bytes")
    return AddLargeFile(path, str(oid), size)


def make_commit(
    connection: Connection,
    store: BlobStore,
    repository_id: int,
    ref: str,
    author: Author,
    header: CommitHeader,
    operations: Iterable[Operation],
) -> str:
    """Make a commit on a branch or pull request, given by its full name, and return its id.

    The caller's transaction makes it visible.

    Raises:
        HubError: 404 for an unknown ref or a path to delete that is not there, 412 for a stale parent, 400 for a
            large file that its author did not upload to this repository or paths that contradict each other, 409 where
            what was published would change, on main or in what a pull request makes of it.
    """
    head = find_ref(connection, repository_id, ref)
    if head is None:
        raise revision_not_found(ref.removeprefix(BRANCH))
    if header.parent is not None and not head.target.startswith(header.parent):
        raise stale_parent()
    parent = resolve_revision(connection, repository_id, head.target)
    before = read_files(connection, parent.tree)
    files = _apply(connection, repository_id, ref, author, operations, parent.id, before)
    if ref == DEFAULT_REF or pull_request_number(ref) is not None:
        check_published(connection, store, repository_id, before, files)
    tree = store_trees(connection, files)
    commit_id = insert_commit(
        connection,
        repository_id,
        tree=tree,
        parent=parent.id,
        author=author.name,
        created_at=max(int(time.time()), parent.created_at),
        title=header.summary,
        message=header.description,
    )
    move_ref(connection, repository_id, ref, commit_id)
    if ref == DEFAULT_REF:
        index_files(connection, store, repository_id, files)
    return commit_id


def make_first_commit(connection: Connection, repository_id: int, author: str) -> str:
    """Give a new repository its main branch, with the ``.gitattributes`` that says which files are large.

    Its content, ``GITATTRIBUTES``, must be in the store.
    """
    file = File(
        git.object_id("blob", GITATTRIBUTES), hashlib.sha256(GITATTRIBUTES).hexdigest(), len(GITATTRIBUTES), False
    )
    store_files(connection, [file])
    files = {".gitattributes": file.id}
    commit_id = insert_commit(
        connection,
        repository_id,
        tree=store_trees(connection, files),
        parent=None,
        author=author,
        created_at=int(time.time()),
        title="initial commit",
        message="",
    )
    create_ref(connection, repository_id, BRANCH, DEFAULT_BRANCH, commit_id)
    return commit_id


def squash_branch(connection: Connection, repository_id: int, branch: str, author: str, title: str) -> str:
    """Replace a branch's history by one commit with the same files, and return its id."""
    head = find_ref(connection, repository_id, BRANCH + branch)
    if head is None:
        raise revision_not_found(branch)
    commit = resolve_revision(connection, repository_id, head.target)
    commit_id = insert_commit(
        connection,
        repository_id,
        tree=commit.tree,
        parent=None,
        author=author,
        created_at=max(int(time.time()), commit.created_at),
        title=title,
        message="",
    )
    move_ref(connection, repository_id, BRANCH + branch, commit_id)
    return commit_id


def _apply(
    connection: Connection,
    repository_id: int,
    ref: str,
    author: Author,
    operations: Iterable[Operation],
    parent: str,
    before: Mapping[str, str],
) -> dict[str, str]:
    """Return what operations make of the parent's files, each path → blob id, and store what stands behind the ids."""
    files, added = dict(before), {}
    for operation in operations:
        if isinstance(operation, DeleteFile | DeleteFolder):
            _delete(files, operation, parent)
            continue
        if isinstance(operation, AddFile):
            file = operation.file
        else:
            file = _find_upload(connection, repository_id, author, operation, before)
        files[operation.path] = file.id
        added[operation.path] = file
    store_files(connection, added.values())
    record_large_files(connection, repository_id, ref, added)
    return files


def _find_upload(
    connection: Connection, repository_id: int, author: Author, operation: AddLargeFile, before: Mapping[str, str]
) -> File:
    """Return the large file that the author sent, or that the parent has."""
    size = find_upload(connection, repository_id, author.sender, operation.sha256)
    if size is None:
        size = _find_large(connection, repository_id, operation.sha256, before)
    if size is None or operation.size not in (None, size):
        raise HubError(
            400,
            "LfsObjectMissing",
            f"{operation.path}: no file of {operation.size} bytes with sha256 {operation.sha256} was uploaded to "
            "this repository",
        )
    pointer = git.lfs_pointer(operation.sha256, size)
    return File(git.object_id("blob", pointer), operation.sha256, size, True)


def _find_large(connection: Connection, repository_id: int, sha256: str, before: Mapping[str, str]) -> int | None:
    """Return the size of a large file that the parent has, at whatever path: it may be copied, whoever sent it."""
    files = find_files(connection, before.values()).values()
    found = next((file for file in files if file.lfs and file.sha256 == sha256), None)
    return None if found is None or is_deleted(connection, repository_id, found) else found.size


def _delete(files: dict[str, str], operation: DeleteFile | DeleteFolder, commit: str) -> None:
    if isinstance(operation, DeleteFile):
        if operation.path not in files:
            raise entry_not_found(f"A file with this name doesn't exist: {operation.path}", commit)
        del files[operation.path]
        return
    inside = [path for path in files if path.startswith(operation.path + "/")]
    if not inside:
        raise entry_not_found(f"A file with this name doesn't exist: {operation.path}/", commit)
    for path in inside:
        del files[path]


def store_files(connection: Connection, files: Iterable[File]) -> None:
    """Note what stands behind blob ids. Sorted, as :meth:`Database.write` wants it: other commits may note the same."""
    connection.executemany(
        "INSERT INTO files VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        sorted((file.id, file.sha256, file.size, int(file.lfs)) for file in files),
    )


def store_trees(connection: Connection, files: Mapping[str, str]) -> str:
    """Store the trees of files, given as path → blob id, and return the root's id.

    Raises:
        HubError: 400, a path would be both a file and a folder.
    """
    try:
        root, trees = git.build_trees(files)
    except ValueError as error:
        raise bad_request(f"{error} would be both a file and a folder") from error
    connection.executemany("INSERT INTO trees VALUES (?, ?) ON CONFLICT DO NOTHING", sorted(trees.items()))
    return root
