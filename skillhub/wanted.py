"""What a user may ask for, as it is written: a name with versions, a name at a revision, a folder, or a PEFT adapter."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.specifiers import SpecifierSet

from skillhub.errors import UsageError
from skillhub.lockfile import PACK, PEFT, relative_folder
from skillhub.names import PackName, Requirement, is_folder, parse_pack_name, parse_requirement
from skillhub.packs import open_pack

_PEFT_PREFIX = "peft:"
_AT_REVISION = re.compile(r"\s*(?P<name>[^\s<>=!~,;@\[\]]+)@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{0,199})\s*")
_VERSION = re.compile(r"v?[0-9]+(\.[0-9]+)+\S*")


@dataclass(frozen=True)
class Wanted:
    """A requirement that was read, before its source was looked at.

    Attributes:
        requirement: the pack and the versions that will do; the name of a folder's pack has no owner.
        folder: the folder, or None for a pack from a registry.
        revision: the commit, branch or tag to read the repository at; None means main.
        kind: ``pack``, or ``peft`` for an adapter.
    """

    requirement: Requirement
    folder: Path | None = None
    revision: str | None = None
    kind: str = PACK

    @property
    def name(self) -> PackName:
        """The pack's name."""
        return self.requirement.pack

    @property
    def key(self) -> str:
        """What tells packs of one environment apart."""
        return str(self.name).lower()

    def text(self, start: Path) -> str:
        """Return how ``skillhub.toml`` in the folder ``start`` says this."""
        if self.folder is not None:
            relative = relative_folder(self.folder, start)
            return relative if relative.startswith(".") else f"./{relative}"
        return str(self)

    def __str__(self) -> str:
        if self.folder is not None:
            return self.requirement.text
        prefix = _PEFT_PREFIX if self.kind == PEFT else ""
        return f"{prefix}{self.requirement}" + (f"@{self.revision}" if self.revision else "")

    def with_owner(self, owner: str) -> Wanted:
        """Return the same with the pack's owner."""
        requirement = replace(self.requirement, pack=PackName(owner, self.name.name))
        return replace(self, requirement=requirement)


def parse_wanted(text: str, *, start: Path | None = None) -> Wanted:
    """Read what a user asks for.

    Args:
        text: a name with or without versions (``acme/math-pack>=1.2``), a name at a revision (``acme/math-pack@COMMIT``), an
            adapter (``peft:acme/lora``, with or without ``@COMMIT``), or a folder (``./dir``, ``../dir``, ``/dir``, ``~/dir``).
        start: what a relative folder is relative to; None means the working folder.

    Raises:
        UsageError: it is none of these.
        NotFoundError: the folder is no pack.
    """
    if is_folder(text):
        folder = ((start or Path.cwd()) / Path(text).expanduser()).resolve()
        pack = open_pack(folder)
        return Wanted(Requirement(PackName(None, pack.manifest.name), SpecifierSet(), text), folder)
    if text.startswith(_PEFT_PREFIX):
        return _parse_adapter(text)
    pinned = _AT_REVISION.fullmatch(text)
    if pinned:
        _refuse_version(pinned["name"], pinned["revision"])
        requirement = Requirement(parse_pack_name(pinned["name"]), SpecifierSet(), text.strip())
        return Wanted(requirement, revision=pinned["revision"])
    return Wanted(parse_requirement(text))


def _refuse_version(name: str, revision: str) -> None:
    """Refuse what people mean as a version; in repositories of packs the tags are for people only."""
    if _VERSION.fullmatch(revision):
        version = revision.removeprefix("v")
        raise UsageError(
            f"{name}@{revision} names a commit, and {revision} is a version.",
            hint=f"Write '{name}=={version}', or the commit's 40 digits after '@'.",
        )


def _parse_adapter(text: str) -> Wanted:
    name, _, revision = text.removeprefix(_PEFT_PREFIX).strip().partition("@")
    pack = parse_pack_name(name)
    if pack.owner is None or (revision and not _AT_REVISION.fullmatch(f"x@{revision}")):
        raise UsageError(
            f"{text!r} does not name an adapter.",
            hint="Write peft:OWNER/NAME, or peft:OWNER/NAME@COMMIT.",
            requirement=text,
        )
    return Wanted(Requirement(pack, SpecifierSet(), text.strip()), revision=revision or None, kind=PEFT)
