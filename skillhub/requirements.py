"""Requirements together: what an environment asks for, how a command's join them, and whether a lock is theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from packaging.specifiers import SpecifierSet

from skillhub.environments import Environment
from skillhub.errors import UsageError, located
from skillhub.lockfile import LOCAL, PEFT, Lock, LockedPack, inputs_digest, relative_folder
from skillhub.names import PackName, Requirement, is_folder, parse_requirement
from skillhub.progress import Notice
from skillhub.projects import PROJECT_FILE, Project
from skillhub.wanted import Wanted, parse_wanted


def project_requirements(project: Project, lock: Lock, start: Path) -> list[Wanted]:
    """Return the requirements of the ``skillhub.toml`` in the folder ``start``.

    A folder that is locked keeps its name although it may be gone: its pack can still come from the store.

    Raises:
        SkillhubError: as :func:`skillhub.wanted.parse_wanted`; the message names the file.
    """
    local = {entry.repository: entry for entry in lock.packs if entry.registry == LOCAL}
    with located(str(start / PROJECT_FILE)):
        return [_project_requirement(text, local, start) for text in project.requirements]


def _project_requirement(text: str, local: Mapping[str, LockedPack], start: Path) -> Wanted:
    if is_folder(text):
        folder = (start / Path(text).expanduser()).resolve()
        entry = local.get(relative_folder(folder, start))
        if entry is not None:
            return Wanted(Requirement(entry.pack_name, SpecifierSet(), text), folder)
    return parse_wanted(text, start=start)


def parse_rules(texts: Sequence[str], *, what: str) -> tuple[Requirement, ...]:
    """Read constraints or overrides: names with owners, and versions.

    Args:
        texts: the rules.
        what: what to call one in messages.

    Raises:
        UsageError: one is no requirement, or its name lacks an owner.
    """
    with located(f"{what}s"):
        rules = tuple(parse_requirement(text) for text in texts)
    for rule in rules:
        if rule.pack.owner is None:
            raise UsageError(
                f"The {what} {rule.text!r} lacks an owner.", hint=f"Write OWNER/{rule.pack}{rule.specifier}."
            )
    return rules


def combine_requirements(together: Sequence[Wanted]) -> list[Wanted]:
    """Return one requirement for each pack: the versions of requirements that were given together must all hold.

    Raises:
        UsageError: a pack is wanted from two places.
    """
    combined: dict[str, Wanted] = {}
    for one in together:
        for other in combined.values():
            if is_same_pack(one, other) and _place(one) != _place(other):
                raise UsageError(
                    f"{other.requirement.text} and {one.requirement.text} are both asked for, and both are called "
                    f"{one.name.name}.",
                    hint="Keep one of them: a pack comes from one place.",
                )
        before = combined.get(one.key)
        combined[one.key] = _both(before, one) if before else one
    return list(combined.values())


def _place(wanted: Wanted) -> tuple[Path | None, str | None, str]:
    return wanted.folder, wanted.revision, wanted.kind


def is_same_pack(one: Wanted, other: Wanted) -> bool:
    """Say whether two requirements mean one pack; the pack in a folder may have any owner."""
    return one.key == other.key or (bool(one.folder or other.folder) and one.name.matches(other.name))


def _both(one: Wanted, other: Wanted) -> Wanted:
    first, second = one.requirement, other.requirement
    if first.specifier == second.specifier:
        return one
    text = f"{first.text} and {second.text}"
    return replace(one, requirement=Requirement(first.pack, first.specifier & second.specifier, text))


def merge_requirements(old: Sequence[Wanted], new: Sequence[Wanted], notice: Notice) -> list[Wanted]:
    """Return all requirements: a new one takes the place of an old one, unless it names no versions.

    Args:
        old: what the environment asks for; stays in this order.
        new: what the user asks for now.
        notice: told which old requirement goes.

    Raises:
        UsageError: as :func:`combine_requirements`, for either.
    """
    merged = {one.key: one for one in combine_requirements(old)}
    for one in combine_requirements(new):
        replaced = [other for other in merged.values() if is_same_pack(one, other)]
        if any(_is_kept(other, one) for other in replaced):
            continue
        for other in replaced:
            notice(f"{one} takes the place of {other}.")
            del merged[other.key]
        merged[one.key] = one
    return list(merged.values())


def _is_kept(old: Wanted, new: Wanted) -> bool:
    if _place(old) != _place(new):
        # without versions a name means the pack as it is wanted already, at a revision as well; never another folder
        return not (new.folder or old.folder or new.revision) and old.kind == new.kind and _any_version(new)
    return new.requirement.specifier in (SpecifierSet(), old.requirement.specifier)


def _any_version(wanted: Wanted) -> bool:
    return wanted.requirement.specifier == SpecifierSet()


def asks_for(wanted: Wanted, name: PackName) -> bool:
    """Say whether a requirement is for the installed pack ``name``, which has no owner when it came from a folder."""
    return wanted.name == name or (wanted.folder is None and name.owner is not None and wanted.name.matches(name))


def lock_inputs(project: Project, texts: Sequence[str]) -> str:
    """Return the digest of what a lock of this project is made from, with requirements as ``skillhub.toml`` says them."""
    return inputs_digest(
        texts,
        constraints=project.constraints,
        overrides=project.overrides,
        exclude_newer=project.exclude_newer,
        pre_releases=project.pre_releases,
    )


def stale_reason(project: Project, wanted: Sequence[Wanted], lock: Lock | None, environment: Environment) -> str | None:
    """Return why a lock is not that of what an environment asks for, as the end of a sentence; None when it is.

    Args:
        project: the environment's rules.
        wanted: its requirements.
        lock: its lock; None where there is none.
        environment: the environment.
    """
    if lock is None:
        return "there is none"
    overridden = {rule.pack for rule in parse_rules(project.overrides, what="override")}
    for one in wanted:
        entry = lock.find(one.name)
        if entry is None or entry.kind != one.kind or (entry.registry == LOCAL) != (one.folder is not None):
            return f"it has no {one}"
        if one.name not in overridden and not _will_do(one.requirement, entry):
            return f"it has {entry.name} {entry.version}, and {one} is asked for"
    if lock.inputs != lock_inputs(project, [one.text(environment.folder) for one in wanted]):
        return "requirements or rules have changed since it was made"
    return None


def _will_do(requirement: Requirement, entry: LockedPack) -> bool:
    return entry.kind == PEFT or requirement.specifier.contains(entry.version, prereleases=True)
