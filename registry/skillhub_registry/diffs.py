"""What a pull request changes, as ``git diff`` would write it, for people who decide about it.

Each file has one hunk, from the first line that differs to the last: not the shortest way to say it, but what appending
to an index needs, and no input makes it slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from skillhub_registry import git, limits
from skillhub_registry.blobs import BlobStore
from skillhub_registry.database import Connection
from skillhub_registry.pullrequests import PullRequest
from skillhub_registry.revisions import resolve_revision
from skillhub_registry.trees import File, find_files, read_files

_CONTEXT = 3


def diff_pull_request(connection: Connection, store: BlobStore, repository_id: int, pull_request: PullRequest) -> str:
    """Return what a pull request changes, against the commit that it began at.

    Large files are shown as in git, by their pointers. Other files that are no text, or too long, are only named; so is
    how many files there are beyond the limit on the whole.
    """
    before, after = (
        read_files(connection, resolve_revision(connection, repository_id, revision).tree)
        for revision in (pull_request.start, pull_request.ref)
    )
    paths = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    known = find_files(connection, [files[path] for path in paths for files in (before, after) if path in files])
    parts, size = [], 0
    for number, path in enumerate(paths):
        if size > limits.DIFF:
            parts.append(f"# {len(paths) - number} more files are not shown\n")
            break
        parts.append(_diff_file(store, path, _find(known, before, path), _find(known, after, path)))
        size += len(parts[-1])
    return "".join(parts)


def _find(known: Mapping[str, File], files: Mapping[str, str], path: str) -> File | None:
    return known[files[path]] if path in files else None


def _diff_file(store: BlobStore, path: str, old: File | None, new: File | None) -> str:
    names = [f"a/{path}" if old else "/dev/null", f"b/{path}" if new else "/dev/null"]
    head = f"diff --git a/{path} b/{path}\n"
    if old is None or new is None:
        head += f"{'new' if old is None else 'deleted'} file mode {git.FILE_MODE}\n"
    head += f"index {old.id if old else '0' * 40}..{new.id if new else '0' * 40}\n"
    texts = [_read_lines(store, file) for file in (old, new)]
    if texts[0] is None or texts[1] is None:
        return f"{head}Binary files {names[0]} and {names[1]} differ\n"
    hunk = _make_hunk(texts[0], texts[1])
    tab = "\t" if " " in path else ""  # as git ends names that have spaces
    return f"{head}--- {names[0]}{tab}\n+++ {names[1]}{tab}\n{hunk}" if hunk else head


def _read_lines(store: BlobStore, file: File | None) -> list[str] | None:
    """Return a file's lines with their ends; None for one that is no text, or too long."""
    if file is None:
        return []
    if file.lfs:
        data = git.lfs_pointer(file.sha256, file.size)
    elif file.size > limits.DIFF:
        return None
    else:
        data = store.read(file.sha256)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else [f"{line}\n" for line in text.split("\n")[:-1]] + _last_line(text)


def _last_line(text: str) -> list[str]:
    last = text.rpartition("\n")[2]
    return [last] if last else []


def _make_hunk(old: Sequence[str], new: Sequence[str]) -> str:
    """Return the one hunk that leads from old to new lines; nothing where there is none."""
    first = _count_equal(old, new)
    last = _count_equal(old[first:][::-1], new[first:][::-1])
    if first == len(old) == len(new):
        return ""
    above, below = old[max(first - _CONTEXT, 0) : first], old[len(old) - last :][:_CONTEXT]
    start = first - len(above)
    counts = [len(above) + len(lines) - first - last + len(below) for lines in (old, new)]
    ranges = [f"{start + 1 if count else start},{count}" for count in counts]
    body = [f" {line}" for line in above]
    body += [f"-{line}" for line in old[first : len(old) - last]]
    body += [f"+{line}" for line in new[first : len(new) - last]]
    body += [f" {line}" for line in below]
    whole = "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in body)
    return f"@@ -{ranges[0]} +{ranges[1]} @@\n{whole}"


def _count_equal(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
