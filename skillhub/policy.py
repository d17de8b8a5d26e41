"""``policy.toml``: which packs a user, or whoever looks after the machine, lets in at all.

    allowed_owners = ["acme", "corp"]     packs of these owners only; empty allows all
    require_signatures = true             or a list of the owners whose releases must be signed
    cooldown_days = 7                     releases must have been out for this long

The file lies in the configuration folder, or where ``SKILLHUB_POLICY`` says. Packs from folders on this machine are
exempt: whoever names a folder has the bytes already. What is locked must keep the rules about owners and signatures;
the cool-down is for choosing releases only.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import msgspec
from msgspec import Struct

from skillhub import settings
from skillhub.documents import field_error, parse_toml
from skillhub.errors import TrustError, UsageError
from skillhub.fields import Count
from skillhub.files import disk_errors
from skillhub.lockfile import LOCAL, PACK, Lock
from skillhub.names import PackName, is_bare_name

POLICY_FILE = "policy.toml"


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A parsed ``policy.toml``; without one, nothing is forbidden.

    Attributes:
        allowed_owners: owners whose packs may be installed; empty allows all.
        require_signatures: whether releases must be signed, or the owners whose releases must be.
        cooldown_days: days that a release must have been out for.
    """

    allowed_owners: list[str] = []
    require_signatures: bool | list[str] = False
    cooldown_days: Count = 0

    def __post_init__(self) -> None:
        _check_owners("allowed_owners", self.allowed_owners)
        if isinstance(self.require_signatures, list):
            _check_owners("require_signatures", self.require_signatures)

    def allows_owner(self, name: PackName) -> bool:
        """Say whether packs of this owner may be installed."""
        return not self.allowed_owners or _is_listed(name, self.allowed_owners)

    def requires_signature(self, name: PackName) -> bool:
        """Say whether releases of this pack must be signed."""
        if isinstance(self.require_signatures, bool):
            return self.require_signatures
        return _is_listed(name, self.require_signatures)


def _check_owners(field: str, owners: list[str]) -> None:
    for number, owner in enumerate(owners):
        if not is_bare_name(owner):
            raise ValueError(f".{field}[{number}]: {owner!r} is not an owner's name")


def _is_listed(name: PackName, owners: list[str]) -> bool:
    return name.owner is not None and name.owner.lower() in {owner.lower() for owner in owners}


def policy_path() -> Path:
    """Return where the policy is or would be (``SKILLHUB_POLICY``)."""
    chosen = os.environ.get("SKILLHUB_POLICY")
    return Path(chosen).expanduser() if chosen else settings.configuration_folder() / POLICY_FILE


def read_policy() -> Policy:
    """Read the policy; without a file nothing is forbidden.

    Raises:
        UsageError: the TOML or a field is wrong (the message names the line or the field), or ``SKILLHUB_POLICY`` names a
            file that does not exist: a policy must not go by a mistake in its name.
        DiskError: it may not be read, or is a folder.
    """
    path = policy_path()
    try:
        with disk_errors(path):
            data = path.read_bytes()
    except FileNotFoundError as error:
        if not os.environ.get("SKILLHUB_POLICY"):
            return Policy()
        raise UsageError(
            f"SKILLHUB_POLICY names {path}, which does not exist.", hint="Correct or unset the variable."
        ) from error
    try:
        return msgspec.convert(parse_toml(data), Policy)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}.", hint="Correct that line, then try again.") from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path}: {field_error(error)}.", hint="Correct that field, then try again.") from error


def check_lock(policy: Policy, lock: Lock) -> None:
    """Check that what is locked may be installed; for a lock that somebody else made, or that is older than the policy.

    Raises:
        TrustError: the policy forbids a locked pack.
    """
    for entry in lock.packs:
        if entry.registry == LOCAL:
            continue
        name = entry.pack_name
        check_owners(policy, name, entry.repository)
        if entry.kind == PACK and entry.signer is None and policy.requires_signature(name):
            raise _forbidden(f"{name} {entry.version} is not signed, which the policy requires", policy)


def check_owners(policy: Policy, name: PackName, repository: str) -> None:
    """Check who a pack is by, and who has the repository that it comes from: another one where it moved, or a lock lies.

    Raises:
        TrustError: the policy does not allow one of them.
    """
    for place in (name, PackName(*repository.rpartition("/")[::2])):
        if not policy.allows_owner(place):
            raise _forbidden(f"{place} is not by one of the owners that the policy allows", policy)


def _forbidden(what: str, policy: Policy) -> TrustError:
    return TrustError(
        f"{what}: {', '.join(policy.allowed_owners)}." if policy.allowed_owners else f"{what}.",
        hint=f"Leave the pack out, or change the policy in {policy_path()}.",
    )
