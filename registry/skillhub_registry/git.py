"""Git objects: blobs, trees and commits with the ids that git itself would give them.

Files kept out of git are represented, as on the Hub, by their LFS pointer: the id of such a file is the id of the
pointer's text (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

FILE_MODE = "100644"
FOLDER_MODE = "40000"
EMPTY_TREE_ID = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:ext-[^\n]*\n)*oid sha256:[0-9a-f]{64}\nsize \d+\n?"
)


@dataclass(frozen=True)
class TreeEntry:
    """One line of a tree: a file or a folder, by its own name (no ``/``) and its git id."""

    name: str
    mode: str
    id: str

    @property
    def is_folder(self) -> bool:
        """Whether the entry is itself a tree."""
        return self.mode == FOLDER_MODE


@dataclass(frozen=True)
class CommitObject:
    """What a commit's id is computed from. ``created_at`` is in whole seconds since 1970, UTC; ``merged`` a second parent."""

    tree: str
    parent: str | None
    author: str
    created_at: int
    text: str
    merged: str | None = None


def object_id(kind: str, data: bytes) -> str:
    """Return git's id (SHA-1, 40 hexadecimal digits) of an object of kind blob, tree or commit."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def encode_tree(entries: Iterable[TreeEntry]) -> bytes:
    """Return a tree's bytes, sorted as git sorts: folders as if their names ended in ``/``."""
    ordered = sorted(entries, key=lambda entry: entry.name.encode() + (b"/" if entry.is_folder else b""))
    return b"".join(f"{entry.mode} {entry.name}\0".encode() + bytes.fromhex(entry.id) for entry in ordered)


def decode_tree(data: bytes) -> Iterator[TreeEntry]:
    """Yield the entries of a tree that :func:`encode_tree` wrote."""
    position = 0
    while position < len(data):
        end = data.index(b"\0", position)
        mode, _, name = data[position:end].decode().partition(" ")
        yield TreeEntry(name, mode, data[end + 1 : end + 21].hex())
        position = end + 21


def build_trees(files: Mapping[str, str]) -> tuple[str, dict[str, bytes]]:
    """Return the root's id and every tree's bytes by id, for files given as path → blob id.

    Raises:
        ValueError: a path is both a file and a folder.
    """
    folders: dict[str, dict[str, TreeEntry]] = {"": {}}
    for path, blob in files.items():
        parent, _, name = path.rpartition("/")
        _ensure_folder(folders, parent)
        folders[parent][name] = TreeEntry(name, FILE_MODE, blob)
    for path in files:
        if path in folders:
            raise ValueError(path)
    trees: dict[str, bytes] = {}
    for path in sorted(folders, key=lambda folder: folder.count("/") if folder else -1, reverse=True):
        data = encode_tree(folders[path].values())
        tree = object_id("tree", data)
        trees[tree] = data
        if path:
            parent, _, name = path.rpartition("/")
            folders[parent][name] = TreeEntry(name, FOLDER_MODE, tree)
    return object_id("tree", encode_tree(folders[""].values())), trees


def _ensure_folder(folders: dict[str, dict[str, TreeEntry]], path: str) -> None:
    while path not in folders:
        folders[path] = {}
        path = path.rpartition("/")[0]


def encode_commit(commit: CommitObject) -> bytes:
    """Return a commit's bytes."""
    parents = "".join(f"parent {parent}\n" for parent in (commit.parent, commit.merged) if parent)
    person = f"{commit.author} <{commit.author}@users.noreply.local> {commit.created_at} +0000"
    return f"tree {commit.tree}\n{parents}author {person}\ncommitter {person}\n\n{commit.text}\n".encode()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the text that stands for a file kept out of git."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def is_lfs_pointer(content: bytes) -> bool:
    """Say whether a file's content would be read as a pointer to another file."""
    return len(content) < 1024 and _POINTER.fullmatch(content) is not None
