"""What a lock says of packs that are about to be installed, against what this user saw, has pinned and has decided.

Whoever makes a lock chooses the bytes: nothing is asked of a registry's index when it is installed. So it is held against
what is known here already: the registry that a pack is pinned to, the digests of releases as they were first seen, and
the signatures that the policy wants, which are verified then.
"""

from __future__ import annotations

from collections.abc import Iterable

from skillhub.environments import Environment
from skillhub.errors import NotFoundError, TrustError
from skillhub.hub import Registry
from skillhub.indexes import check_seen_release, read_index
from skillhub.lockfile import LOCAL, PACK, LockedPack
from skillhub.names import parse_version
from skillhub.placement import Supply, fetch_manifest, origin_of
from skillhub.policy import Policy
from skillhub.releases import Release, check_agreement
from skillhub.sightings import check_signature


def check_entries(supply: Supply, policy: Policy, environment: Environment, entries: Iterable[LockedPack]) -> None:
    """Check packs of a lock before they are fetched; those from folders on this machine are exempt.

    Args:
        supply: where they will come from.
        policy: the user's rules.
        environment: whose lock it is.
        entries: the locked packs.

    Raises:
        TrustError: one is not from where it is pinned to, or not what it was when it was first seen; or it has no right
            signature, and the policy wants one.
        SkillhubError: as :func:`skillhub.indexes.read_index`, where a signature is wanted.
    """
    for entry in entries:
        if entry.registry == LOCAL:
            continue
        _check_pin(supply, entry)
        wants_signature = policy.requires_signature(entry.pack_name)
        try:
            registry = supply.registries.named(entry.registry)
        except NotFoundError:
            if wants_signature:
                raise
            continue  # what was seen there is not known either; all of it may be in the store
        if entry.kind == PACK:
            check_seen_release(registry, entry.pack_name, parse_version(entry.version), entry.manifest)
            if wants_signature:
                _check_signature(supply, environment, registry, entry)


def _check_pin(supply: Supply, entry: LockedPack) -> None:
    pinned = supply.registries.pinned_to(entry.pack_name)
    if pinned is not None and pinned != entry.registry:
        raise TrustError(
            f"{entry.name} is locked from the registry {entry.registry}, and it is to come from {pinned} only.",
            hint=f"Lock it again: skillhub upgrade {entry.name}. Or change the patterns of {pinned}.",
        )


def _check_signature(supply: Supply, environment: Environment, registry: Registry, entry: LockedPack) -> None:
    """Verify who signed a locked release: the lock only says so, the signature is in the index."""
    release = _published(supply, registry, entry)
    manifest = fetch_manifest(supply, origin_of(entry, environment), entry.manifest)
    agreed = check_agreement(release, manifest, where=f"{entry.name} {entry.version}")
    signer = check_signature(registry, entry.pack_name, release, agreed, locked=entry.signer)
    if signer is None:
        raise TrustError(
            f"{entry.name} {entry.version} is not signed, which the policy requires.", hint="Leave the pack out."
        )


def _published(supply: Supply, registry: Registry, entry: LockedPack) -> Release:
    """Return the line that announced a locked release: main's, or else that of the locked commit."""
    for revision in (None, entry.commit) if entry.commit else (None,):
        index = read_index(registry, entry.pack_name, offline=supply.offline, revision=revision).index
        release = index.find(parse_version(entry.version))
        if release is not None and release.manifest_digest == entry.manifest:
            return release
    raise NotFoundError(
        f"{entry.name} {entry.version} is not among the published releases as it is locked.",
        hint="Find out from its publisher why it is gone before using it.",
    )
