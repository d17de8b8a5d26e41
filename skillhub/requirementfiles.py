r"""Requirements files: one requirement a line, for ``install -r`` and from ``freeze``.

# comments, empty lines and lines that go on after a \ are as in pip's files
acme/math-pack>=1.2,<2
acme/chat-pack==1.0.0 --hash=sha256:…       the digest of the release's manifest; several may be given
./packs/own                                 a folder, relative to this file
-r more.txt                                 another file of requirements, relative to this one
-c narrow.txt                               a file of constraints
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skillhub.errors import NotFoundError, UsageError
from skillhub.files import disk_errors

MAX_REQUIREMENT_FILE_BYTES = 16 << 20

_COMMENT = re.compile(r"(^|\s)#.*")
_INCLUDE = re.compile(r"(-r|-c|--requirement\b|--constraint\b)\s*=?\s*(.*)")
_OPTIONS = re.compile(r"(?:^|\s)(?=-{1,2}[A-Za-z])")
_HASH = re.compile(r"--hash(?:=|\s+)sha256:([0-9a-fA-F]{64})\s*")


@dataclass(frozen=True)
class FileRequirement:
    """One line of a requirements file.

    Attributes:
        text: the requirement as its author wrote it, without options.
        hashes: SHA-256 digests, one of which the release's manifest must have; empty where the line names none.
        line: its number, from 1; of a line that goes on, the first one's.
        path: the file.
        constraint: it only narrows the versions of a pack that comes in anyway (a line of a ``-c`` file).
    """

    text: str
    hashes: tuple[str, ...]
    line: int
    path: Path
    constraint: bool = False

    @property
    def where(self) -> str:
        """The file and the line, for messages."""
        return f"{self.path}, line {self.line}"

    @property
    def start(self) -> Path:
        """What a relative folder is relative to: the file's own folder."""
        return self.path.parent


def read_requirement_file(path: Path, *, constraint: bool = False) -> list[FileRequirement]:
    """Read a requirements file and the files that it includes, each once, in the order of their lines.

    Args:
        path: the file.
        constraint: it is a file of constraints, and so is every file that it includes.

    Returns:
        The requirements, and the constraints among them, which say so.

    Raises:
        NotFoundError: the file, or one that it includes, does not exist.
        UsageError: a line has an option or a hash that cannot be read (the message has the file and the line), or a
            file is no text, or too long.
        DiskError: a file may not be read.
    """
    return list(_read(path, constraint, seen=set(), included_by=""))


def _read(path: Path, constraint: bool, *, seen: set[tuple[str, bool]], included_by: str) -> Iterator[FileRequirement]:
    """Yield a file's requirements; a file that was read already, or is being read, yields nothing."""
    key = (os.path.realpath(path), constraint)
    if key in seen:
        return
    seen.add(key)
    for number, line in _logical_lines(_text_of(path, included_by)):
        where = f"{path}, line {number}"
        if include := _INCLUDE.fullmatch(line):
            target = _included_path(include[2], path, where)
            narrows = constraint or include[1] in ("-c", "--constraint")
            yield from _read(target, narrows, seen=seen, included_by=where)
            continue
        text, *options = _OPTIONS.split(line)
        if not text:
            raise UsageError(
                f"{where}: {line!r} is no option of a requirements file.",
                hint="Such a file has requirements, --hash=sha256:… after them, -r FILE and -c FILE.",
            )
        hashes = tuple(_hash_of(option, where) for option in options)
        yield FileRequirement(text.strip(), hashes, number, path, constraint)


def _text_of(path: Path, included_by: str) -> str:
    try:
        with disk_errors(path), path.open("rb") as stream:
            data = stream.read(MAX_REQUIREMENT_FILE_BYTES + 1)
    except FileNotFoundError as error:
        asked = f", which {included_by} includes," if included_by else ""
        raise NotFoundError(f"The requirements file {path}{asked} does not exist.", hint="Check its name.") from error
    if len(data) > MAX_REQUIREMENT_FILE_BYTES:
        raise UsageError(f"{path} is longer than any requirements file.", hint="Check its name.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text.", hint="Save it as UTF-8, then try again.") from error


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that says something; lines that end in a backslash are joined to the next."""
    begun, number = "", 0
    for at, line in enumerate(text.splitlines(), 1):
        number = number if begun else at
        without_comment = _COMMENT.sub("", line)
        if without_comment == line and line.endswith("\\"):
            begun += line[:-1] + " "
            continue
        whole, begun = (begun + without_comment).strip(), ""
        if whole:
            yield number, whole
    if begun.strip():
        yield number, begun.strip()


def _included_path(text: str, path: Path, where: str) -> Path:
    name = text.strip().strip("\"'")
    if not name or "://" in name or not name.isprintable():
        raise UsageError(
            f"{where}: {name!r} is no file's name.",
            hint="After -r or -c, name a file of this machine, relative to the one that includes it.",
        )
    return path.parent / name


def _hash_of(option: str, where: str) -> str:
    found = _HASH.fullmatch(option)
    if not found:
        raise UsageError(
            f"{where}: {option.strip()!r} is no option of a requirement.",
            hint="Write --hash=sha256: and the 64 hexadecimal digits of the manifest's digest, as `skillhub freeze --hashes` does.",
        )
    return found[1].lower()
