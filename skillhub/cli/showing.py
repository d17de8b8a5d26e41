"""``skillhub show``: what a pack says about itself, and what is known of it here or on a registry."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skillhub.cli import completion, console, options
from skillhub.cli.inspecting import origin_text
from skillhub.cli.outcomes import describe
from skillhub.environments import Environment, InstalledPack, find_installed, read_project
from skillhub.errors import NotFoundError, UsageError
from skillhub.lockfile import PEFT, Lock, read_lock
from skillhub.manifest import Manifest, Variant
from skillhub.names import is_folder
from skillhub.packs import describe_base, open_pack
from skillhub.projects import Base
from skillhub.redaction import printable

if TYPE_CHECKING:
    from skillhub.plans import Planner
    from skillhub.releases import ReleaseIndex
    from skillhub.wanted import Wanted

_RELEASES_SHOWN = 8
_TITLE_WIDTH = 14


@click.command("show")
@click.argument("name", metavar="PACK", shell_complete=completion.complete_packs)
@click.option("--remote", is_flag=True, help="Ask the registries about PACK, whether it is installed or not.")
@options.source_options
@options.environment_option
@console.output_options
def show_command(name: str, remote: bool, environment: Path | None, as_json: bool, **given: Any) -> None:
    """Show what a pack says about itself: PACK is an installed name, a folder, or with --remote one on a registry.

    Without --remote no server is asked, and releases are shown as they were last seen. With it, PACK may have versions, and
    the newest release among them is shown; a PEFT adapter is peft:OWNER/NAME.

    \b
    Example:
      skillhub show acme/math-pack
      skillhub show ./math-pack
      skillhub show --remote 'acme/math-pack<2'
    """
    if remote:
        told = _remote(name, options.chosen_environment(environment), as_json=as_json, **given)
    elif is_folder(name):
        pack = open_pack(Path(name).expanduser())
        told = _Told(str(pack), pack.manifest, {"Folder": str(pack.folder)}, {"folder": str(pack.folder)})
    else:
        told = _installed(name, environment)
    if as_json:
        console.emit_json(told.to_json())
    else:
        _print(told)


@dataclass(frozen=True)
class _Told:
    """What is shown of a pack or an adapter.

    Attributes:
        title: its name and version.
        manifest: of a pack.
        facts: title → text, besides what the manifest says.
        keys: of the JSON form, besides digest and manifest.
        base: of the environment.
    """

    title: str
    manifest: Manifest | None
    facts: dict[str, str]
    keys: dict[str, Any]
    base: Base | None = None

    def to_json(self) -> dict[str, Any]:
        if self.manifest is None:
            return self.keys
        from msgspec import to_builtins

        return {"digest": self.manifest.digest, **self.keys, "manifest": to_builtins(self.manifest)}


def _installed(name: str, environment: Path | None) -> _Told:
    from skillhub.graphs import dependents, key_of
    from skillhub.requirements import asks_for, project_requirements

    name = name.removeprefix("peft:")
    try:
        chosen = options.existing_environment(environment)
        one = find_installed(chosen, name)
    except NotFoundError as error:
        hint = f"{error.hint} What a registry has of it: skillhub show --remote {name}." if "/" in name else error.hint
        raise NotFoundError(error.message, hint=hint, **error.details) from error
    lock, project = read_lock(chosen.lock_path) or Lock(""), read_project(chosen)
    locked = next((entry for entry in lock.packs if entry.pack_name == one.name), None)
    wanted = [str(want) for want in project_requirements(project, lock, chosen.folder) if asks_for(want, one.name)]
    above = [f"{entry.name} {entry.version}" for entry in (dependents(lock)[key_of(locked)] if locked else ())]
    index = _remembered(chosen, one)
    receipt = one.receipt
    facts = {
        "Asked for as": ", ".join(wanted),
        "Required by": ", ".join(above),
        "Came from": f"{origin_text(one)}, commit {receipt.commit[:12]}" if receipt.commit else origin_text(one),
        "Base": f"{locked.base}, as it declares" if locked and locked.base else "",
        **_release_facts(index),
        "Size": console.size_text(one.size),
        "Folder": str(one.folder),
    }
    keys = {
        **describe(one),
        "repository": receipt.repository,
        "commit": receipt.commit,
        "asked_for": wanted,
        "required_by": above,
        "signer": locked.signer if locked else None,
        "base": locked.base if locked else None,
        **_release_keys(index),
    }
    manifest = one.pack.manifest if one.pack else None
    return _Told(str(one), manifest, facts, keys, next(iter(project.base), None))


def _remembered(environment: Environment, one: InstalledPack) -> ReleaseIndex | None:
    """Return the releases of an installed pack as they were last seen; None where they never were."""
    from skillhub.indexes import remembered_index
    from skillhub.registries import known_registries
    from skillhub.releases import parse_releases

    for registry in known_registries(read_project(environment).registry):
        if registry.name == one.receipt.registry and one.pack is not None:
            data = remembered_index(registry, one.name)
            return None if data is None else parse_releases(data)
    return None


def _remote(name: str, environment: Environment | None, *, as_json: bool, **given: Any) -> _Told:
    """Ask the registries about a pack or an adapter."""
    from skillhub.projects import Project
    from skillhub.wanted import parse_wanted

    if is_folder(name):
        raise UsageError(f"{name} is a folder, and no registry has it.", hint="Leave out --remote.")
    with console.progress() as progress:
        session = options.make_session(progress, as_json=as_json, **given)
        project = read_project(environment) if environment else Project()
        (wanted,) = session.complete([parse_wanted(name)], [project], None)
        planner = session.planner(project)
        if wanted.kind == PEFT:
            return _remote_adapter(planner, wanted)
        return _remote_pack(planner, wanted, next(iter(project.base), None))


def _remote_pack(planner: Planner, wanted: Wanted, base: Base | None) -> _Told:
    planner.catalog.place([wanted], Lock(""))
    source = planner.catalog.source(wanted.name)
    allowed = wanted.requirement.specifier
    releases = [one for one in source.index.releases if allowed.contains(one.version, prereleases=True)]
    if not releases:
        raise NotFoundError(f"No release of {wanted} is published.", hint=f"See: skillhub show --remote {wanted.name}.")
    release = max(releases, key=lambda one: (one.yanked is None, not one.version.is_prerelease, one.version))
    manifest = planner.read_manifest(wanted.name, release)
    assert source.registry is not None  # no folder was asked for
    registry = source.registry
    facts = {"Registry": f"{registry.name} ({registry.address})", **_release_facts(source.index)}
    keys = {"name": str(wanted.name), "version": manifest.version, "registry": registry.name}
    return _Told(f"{wanted.name} {manifest.version}", manifest, facts, {**keys, **_release_keys(source.index)}, base)


def _remote_adapter(planner: Planner, wanted: Wanted) -> _Told:
    registry, adapter = planner.catalog.find_adapter(wanted)
    size = sum(file.size for file in adapter.files)
    facts = {
        "Registry": f"{registry.name} ({registry.address})",
        "Commit": adapter.commit,
        "Base": f"{adapter.base}, as it declares" if adapter.base else "not stated",
        "Size": console.size_text(size),
    }
    keys = {"name": str(wanted.name), "version": adapter.commit[:12], "kind": PEFT, "registry": registry.name}
    more = {"commit": adapter.commit, "base": adapter.base, "size": size}
    return _Told(f"{wanted.name} {adapter.commit[:12]}", None, facts, {**keys, **more})


def _release_facts(index: ReleaseIndex | None) -> dict[str, str]:
    if index is None:
        return {}
    newest = sorted(index.releases, key=lambda one: one.version, reverse=True)
    texts = [f"{one.version} (yanked: {one.yanked})" if one.yanked is not None else str(one.version) for one in newest]
    older = len(texts) - _RELEASES_SHOWN
    listed = ", ".join(texts[:_RELEASES_SHOWN]) + (f" and {older} older" if older > 0 else "")
    return {"Releases": listed, "Deprecated": index.deprecated or "", "Moved to": index.moved_to or ""}


def _release_keys(index: ReleaseIndex | None) -> dict[str, Any]:
    if index is None:
        return {"releases": None}
    releases = [
        {"version": str(one.version), "digest": one.manifest_digest, "yanked": one.yanked} for one in index.releases
    ]
    return {"releases": releases, "deprecated": index.deprecated, "moved_to": index.moved_to}


def _print(told: _Told) -> None:
    manifest = told.manifest
    summary = ": a PEFT adapter" if manifest is None else f": {manifest.summary}" if manifest.summary else ""
    click.echo(click.style(told.title, bold=True) + printable(summary))
    facts = told.facts if manifest is None else {**_manifest_facts(manifest), **told.facts}
    for title, text in facts.items():
        _print_fact(title, text)
    for variant in manifest.variants if manifest else ():
        _print_variant(variant, told.base)


def _manifest_facts(manifest: Manifest) -> dict[str, str]:
    signer = manifest.signer
    return {
        "Licence": manifest.license or "not stated",
        "Tags": ", ".join(manifest.skills.tags),
        "Requires": ", ".join(manifest.requires),
        "Conflicts": ", ".join(manifest.conflicts),
        "Signed by": f"{signer.algorithm}:{signer.public_key}" if signer else "",
        "Digest": manifest.digest,
    }


def _print_fact(title: str, text: str) -> None:
    """Print one fact; long ones go on below themselves, and what cannot be broken stays whole to be copied."""
    if text:
        start = f"  {title + ':':<{_TITLE_WIDTH}}"
        for line in textwrap.wrap(
            printable(text),
            80,
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_long_words=False,
            break_on_hyphens=False,
        ):
            click.echo(line)


def _print_variant(variant: Variant, base: Base | None) -> None:
    info, codec = variant.base, variant.codec
    mark = " (this environment's base)" if base and base.fingerprint == info.fingerprint else ""
    click.echo(printable(f"\nFor {describe_base(variant)}{mark}:"))
    click.echo(printable(f"  {info.architecture or 'unknown architecture'}, {info.dtype or 'unknown type'}"))
    click.echo(
        f"  {console.size_text(variant.size)}, {codec.bits_per_weight:.3f} bits per weight, {len(codec.tensors)} tensors, "
        f"preset {codec.way}"
    )
    rows = [
        [one.task, one.metric, f"{one.base:.4f}", "–" if one.tuned is None else f"{one.tuned:.4f}", f"{one.pack:.4f}"]
        for one in variant.evaluation
    ]
    if rows:
        console.table(["Task", "Metric", "Base", "Tuned", "Pack"], rows, right=(2, 3, 4))
