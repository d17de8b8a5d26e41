"""Whether an environment hangs together: what is asked for, locked and installed, and the packs among themselves.

Nothing is asked of any server, and of the packs only manifests and receipts are read (:mod:`skillhub.integrity` reads
every byte). What was published is known as far as it is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from skillhub.changes import Change, find_changes
from skillhub.environments import (
    Environment,
    InstalledPack,
    as_environment,
    installed_folders,
    installed_packs,
    read_project,
)
from skillhub.errors import TrustError
from skillhub.indexes import remembered_index
from skillhub.lockfile import LOCAL, PACK, Lock, LockedPack, read_lock
from skillhub.names import PackName, Requirement, parse_requirement, parse_version
from skillhub.packs import base_text, short_fingerprint
from skillhub.policy import check_lock, read_policy
from skillhub.projects import Base, Project
from skillhub.registries import known_registries
from skillhub.releases import Release, parse_releases
from skillhub.requirements import parse_rules, project_requirements, stale_reason
from skillhub.wanted import Wanted

Rule = Literal["lock", "installed", "dependency", "conflict", "base", "policy", "yanked", "tampering"]

_LOCK_ANEW = "Choose again: skillhub lock, then skillhub sync."


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        rule: what does not hold.
        pack: the pack; None for the environment itself.
        message: what is wrong.
        hint: what to do about it.
    """

    rule: Rule
    pack: str | None
    message: str
    hint: str


def check(environment: Path | str | Environment) -> list[Finding]:
    """Look for what does not fit together in an environment; no bytes of packs are read, and no server is asked.

    Args:
        environment: where.

    Returns:
        What was found: a lock that is not that of ``skillhub.toml``, packs that are not installed as they are locked,
        requirements of locked packs that nothing locked meets, conflicts, packs for another base, packs that the policy
        forbids, and releases that are remembered as yanked, or with another digest; empty when all is well.

    Raises:
        SkillhubError: ``skillhub.toml``, the lock, the policy or what is remembered cannot be read.
    """
    chosen = as_environment(environment)
    project, lock = read_project(chosen), read_lock(chosen.lock_path)
    wanted = known_owners(project_requirements(project, lock or Lock(""), chosen.folder), lock)
    if lock is None and not wanted and not installed_folders(chosen):
        return []
    findings = []
    if reason := stale_reason(project, wanted, lock, chosen):
        told = f"The lock is not up to date: {reason}."
        findings.append(Finding("lock", None, told, "Bring it up to date: skillhub lock."))
    locked = [Base(fingerprint=one.fingerprint, repo=one.repo) for one in lock.bases] if lock else []
    base = next(iter([*project.base, *locked]), None)
    if lock is not None and base is not None:
        findings += _Check(chosen, project, lock, base).findings()
    return findings


def known_owners(wanted: Sequence[Wanted], lock: Lock | None) -> list[Wanted]:
    """Return requirements with the owners that short names have in the lock; nothing is looked up for that."""
    completed = []
    for one in wanted:
        found = [entry.pack_name for entry in lock.packs if one.name.matches(entry.pack_name)] if lock else []
        is_short = one.folder is None and one.name.owner is None
        owner = found[0].owner if is_short and len(found) == 1 else None
        completed.append(one.with_owner(owner) if owner else one)
    return completed


@dataclass(frozen=True)
class _Check:
    environment: Environment
    project: Project
    lock: Lock
    base: Base

    def findings(self) -> list[Finding]:
        found = [*self._base(), *map(_change_finding, find_changes(self.environment, self.lock, self.base))]
        for entry in self.lock.packs:
            found += [*self._fit(entry), *self._dependencies(entry), *self._conflicts(entry)]
        for entry in self.lock.packs:
            found += [*self._constraints(entry), *self._policy(entry), *self._published(entry)]
        return found

    def _base(self) -> Iterator[Finding]:
        locked = [one.fingerprint for one in self.lock.bases]
        if locked and self.base.fingerprint not in locked:
            told = f"The environment is for {self._base_text}, and its lock for {short_fingerprint(locked[0])}."
            yield Finding("base", None, told, _LOCK_ANEW)

    @property
    def _base_text(self) -> str:
        return base_text(self.base.fingerprint, self.base.repo)

    def _fit(self, entry: LockedPack) -> Iterator[Finding]:
        if not entry.files_for(self.base.fingerprint):
            told = f"{entry.name} {entry.version} has no variant for {self._base_text}."
            yield Finding("base", entry.name, told, _LOCK_ANEW)

    def _dependencies(self, entry: LockedPack) -> Iterator[Finding]:
        what = f"{entry.name} {entry.version}"
        for requirement in self._requires(entry):
            found = self._serving(requirement.pack)
            rule = self._overrides.get(requirement.pack, requirement)
            if found is None:
                told = f"{what} requires {requirement.text}, which is not locked."
            elif found.kind == PACK and not rule.specifier.contains(found.version, prereleases=True):
                told = f"{what} requires {requirement.text}, and {found.name} {found.version} is locked."
                if rule is not requirement:
                    told = f"The override {rule.text} does not allow {found.name} {found.version}, which is locked."
            else:
                continue
            yield Finding("dependency", entry.name, told, _LOCK_ANEW)

    def _requires(self, entry: LockedPack) -> list[Requirement]:
        """Return what a locked pack requires, with versions where its manifest or its line in the index is at hand."""
        texts = self._declared(entry)
        return [parse_requirement(text) for text in (entry.dependencies if texts is None else texts[0])]

    def _declared(self, entry: LockedPack) -> tuple[list[str], list[str]] | None:
        """Return the requirements and the conflicts that a locked release declares; None where neither is at hand."""
        installed = self._installed.get(entry.pack_name)
        if installed and installed.pack and installed.receipt.manifest == entry.manifest:
            return installed.pack.manifest.requires, installed.pack.manifest.conflicts
        release = self._releases.get(entry.pack_name)
        if release is not None and release.manifest_digest == entry.manifest:
            return release.event.requires, release.event.conflicts
        return None

    @cached_property
    def _installed(self) -> dict[PackName, InstalledPack]:
        return {one.name: one for one in installed_packs(self.environment)}

    @cached_property
    def _releases(self) -> dict[PackName, Release]:
        """The releases of locked packs, as far as they are remembered."""
        registries = {one.name: one for one in known_registries(self.project.registry)}
        found = {}
        for entry in self.lock.packs:
            registry, name = registries.get(entry.registry), entry.pack_name
            if entry.kind != PACK or entry.registry == LOCAL or registry is None:
                continue
            release = parse_releases(remembered_index(registry, name) or b"").find(parse_version(entry.version))
            if release is not None:
                found[name] = release
        return found

    @cached_property
    def _overrides(self) -> dict[PackName, Requirement]:
        return {rule.pack: rule for rule in parse_rules(self.project.overrides, what="override")}

    def _serving(self, name: PackName) -> LockedPack | None:
        """Return the locked pack that a requirement got: the one of that name, or a folder's of the bare name."""
        matching = [entry for entry in self.lock.packs if entry.pack_name.matches(name)]
        return next((entry for entry in matching if entry.pack_name == name), next(iter(matching), None))

    def _conflicts(self, entry: LockedPack) -> Iterator[Finding]:
        for text in (self._declared(entry) or ([], []))[1]:
            conflict = parse_requirement(text)
            for other in self.lock.packs:
                if other is entry or other.kind != PACK or not other.pack_name.matches(conflict.pack):
                    continue
                if conflict.specifier.contains(other.version, prereleases=True):
                    told = f"{entry.name} {entry.version} conflicts with {text}, and {other.name} {other.version} is locked."
                    yield Finding("conflict", entry.name, told, _LOCK_ANEW)

    def _constraints(self, entry: LockedPack) -> Iterator[Finding]:
        for rule in parse_rules(self.project.constraints, what="constraint"):
            concerned = entry.kind == PACK and rule.pack == entry.pack_name
            if concerned and not rule.specifier.contains(entry.version, prereleases=True):
                told = f"The constraint {rule.text} does not allow {entry.name} {entry.version}, which is locked."
                yield Finding("dependency", entry.name, told, _LOCK_ANEW)

    def _policy(self, entry: LockedPack) -> Iterator[Finding]:
        try:
            check_lock(read_policy(), Lock(self.lock.inputs, self.lock.bases, (entry,)))
        except TrustError as error:
            yield Finding("policy", entry.name, error.message, error.hint)

    def _published(self, entry: LockedPack) -> Iterator[Finding]:
        release = self._releases.get(entry.pack_name)
        if release is None:
            return
        what = f"{entry.name} {entry.version}"
        if release.manifest_digest != entry.manifest:
            first, now = release.manifest_digest[:12], entry.manifest[:12]
            told = f"{what} is locked with the digest {now}…, and was first seen with {first}…."
            yield Finding(
                "tampering", entry.name, told, "A published version never changes. Find out which of them is right."
            )
        if release.yanked is not None:
            told = f"{what} was yanked by its publisher ({release.yanked})."
            yield Finding("yanked", entry.name, told, "See whether there is another release: skillhub outdated.")


def _change_finding(change: Change) -> Finding:
    name, before, after = str(change.name), change.before, change.after
    if change.action == "remove":
        told, hint = f"{name} {before or '(damaged)'} is installed and not in the lock.", "Remove it: skillhub sync."
    elif change.action == "install" and before:
        told, hint = f"{name} {before} is installed for another base.", "Install it: skillhub sync."
    elif change.action == "install":
        told, hint = f"{name} {after} is locked and not installed.", "Install it: skillhub sync."
    elif change.action == "update" and before == after:
        told, hint = f"{name} {after} is locked, and another {after} is installed.", "Install it: skillhub sync."
    elif change.action == "update":
        told, hint = f"{name} {after} is locked, and {before} is installed.", "Install it: skillhub sync."
    else:
        told, hint = f"{name} {after} is installed, but not as it is locked.", "Repair it: skillhub sync."
    return Finding("installed", name, told, hint)
