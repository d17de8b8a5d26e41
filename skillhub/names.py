"""Names of packs and the requirements that users write: ``math-pack``, ``acme/math-pack>=1.2``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from skillhub.errors import UsageError

# The Hub's own rule for repository names, without the capital letters that compare equal anyway.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_REQUIREMENT = re.compile(r"\s*(?P<name>[^\s<>=!~,;@\[\]]+)\s*(?P<specifier>[<>=!~].*)?")


@dataclass(frozen=True, slots=True)
class PackName:
    """The full name of a pack, which is the name of its repository; compared case-insensitively.

    Attributes:
        owner: user or organisation, or None for a short name.
        name: bare name.
    """

    owner: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}" if self.owner else self.name

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


def is_bare_name(text: str) -> bool:
    """Say whether ``text`` can be a pack's bare name or an owner's name."""
    return bool(_NAME.fullmatch(text)) and ".." not in text and "--" not in text and not text.endswith(".git")


def parse_pack_name(text: str) -> PackName:
    """Read ``owner/name`` or ``name``.

    Raises:
        UsageError: the text is no such name.
    """
    parts = text.split("/")
    if len(parts) > 2 or not all(is_bare_name(part) for part in parts):
        raise UsageError(
            f"{text!r} is not a pack name.",
            hint="Write OWNER/NAME or NAME, with letters, digits, '.', '_' and '-', such as acme/math-pack.",
            name=text,
        )
    return PackName(parts[0], parts[1]) if len(parts) == 2 else PackName(None, parts[0])


def parse_requirement(text: str) -> Requirement:
    """Read a requirement such as ``acme/math-pack>=1.2,<2``.

    Raises:
        UsageError: the name or the version specifiers cannot be read.
    """
    found = _REQUIREMENT.fullmatch(text)
    if not found:
        raise UsageError(
            f"{text!r} is not a requirement.", hint="Write a name and versions, such as 'acme/math-pack>=1.2'."
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
        version = Version(text)
    except InvalidVersion as error:
        raise UsageError(
            f"{text!r} is not a version.", hint="Use PEP 440 versions, such as 1.0.0, 1.1rc1 or 1.0.0.post1."
        ) from error
    if str(version) != text or version.local:
        public = version.public
        raise UsageError(f"The version {text!r} is not in its normalized public form.", hint=f"Write {public!r}.")
    return version
