"""Names of packs and the requirements that users write: ``math-pack``, ``acme/math-pack>=1.2``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from skillhub.errors import UsageError

# The Hub's own rule for names (huggingface_hub's validate_repo_id); `is_bare_name` adds its forbidden sequences.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_MAX_LENGTH = 500  # of a requirement or version: numbers of thousands of digits cannot be compared
_REQUIREMENT = re.compile(r"\s*(?P<name>[^\s<>=!~,;@\[\]]+)\s*(?P<specifier>[<>=!~].*)?")


@dataclass(frozen=True, slots=True, eq=False)
class PackName:
    """The full name of a pack, which is the name of its repository; compared and hashed without regard to case.

    Attributes:
        owner: user or organisation, or None for a short name.
        name: bare name.
    """

    owner: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}" if self.owner else self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackName) and str(self).lower() == str(other).lower()

    def __hash__(self) -> int:
        return hash(str(self).lower())

    def matches(self, other: PackName) -> bool:
        """Say whether ``other`` is this pack; a short name matches any owner."""
        same_owner = self.owner is None or other.owner is None or self.owner.lower() == other.owner.lower()
        return same_owner and self.name.lower() == other.name.lower()


@dataclass(frozen=True, slots=True)
class Requirement:
    """A pack that is wanted, and the versions that will do.

    Attributes:
        pack: the pack's name, with or without owner.
        specifier: PEP 440 version specifiers; empty means any.
        text: the requirement as its author wrote it, for messages.
    """

    pack: PackName
    specifier: SpecifierSet
    text: str

    def __str__(self) -> str:
        return f"{self.pack}{self.specifier}"


def is_folder(text: str) -> bool:
    """Say whether a user means a folder and not a name: such texts begin with ``.``, ``~`` or a root, as for pip and npm."""
    return text.startswith((".", "~")) or Path(text).is_absolute()


def is_bare_name(text: str) -> bool:
    """Say whether ``text`` can be a pack's bare name or an owner's name."""
    return bool(_NAME.fullmatch(text)) and ".." not in text and "--" not in text and not text.lower().endswith(".git")


def parse_pack_name(text: str) -> PackName:
    """Read ``owner/name`` or ``name``.

    Raises:
        UsageError: the text is no such name.
    """
    parts = text.split("/")
    # an environment keeps packs without an owner in the folder "_", which no owner may share
    if len(parts) > 2 or not all(is_bare_name(part) for part in parts) or text.startswith("_/"):
        raise UsageError(
            f"{_shortened(text)} is not a pack name.",
            hint="Write OWNER/NAME or NAME, with letters, digits, '.', '_' and '-', such as acme/math-pack.",
            name=text,
        )
    return PackName(parts[0], parts[1]) if len(parts) == 2 else PackName(None, parts[0])


def parse_requirement(text: str) -> Requirement:
    """Read a requirement such as ``acme/math-pack>=1.2,<2``.

    Raises:
        UsageError: the name or the version specifiers cannot be read.
    """
    found = _REQUIREMENT.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if not found:
        raise UsageError(
            f"{_shortened(text)} is not a requirement.",
            hint="Write a name and versions, such as 'acme/math-pack>=1.2'.",
            requirement=text,
        )
    try:
        specifier = SpecifierSet(found["specifier"] or "")
    except InvalidSpecifier as error:
        raise UsageError(
            f"The versions in {text!r} cannot be read.",
            hint="Use PEP 440 specifiers, such as >=1.2,<2 or ==1.0.*.",
            requirement=text,
        ) from error
    return Requirement(parse_pack_name(found["name"]), specifier, text.strip())


def parse_version(text: str) -> Version:
    """Read a pack's version: PEP 440, in its normalized form, without a local part.

    Raises:
        UsageError: the version is none, not normalized, or has a local part (``+…``).
    """
    try:
        version = Version(text[: _MAX_LENGTH + 1])
    except InvalidVersion as error:
        raise _not_a_version(text) from error
    if len(text) > _MAX_LENGTH:
        raise _not_a_version(text)
    if str(version) != text or version.local:
        public = version.public
        raise UsageError(
            f"The version {text!r} is not in its normalized public form, {public!r}.", hint=f"Write {public!r}."
        )
    return version


def _not_a_version(text: str) -> UsageError:
    return UsageError(
        f"{_shortened(text)} is not a version.",
        hint="Use PEP 440 versions, such as 1.0.0, 1.1rc1 or 1.0.0.post1.",
        version=text,
    )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}…")
