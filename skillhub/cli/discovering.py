"""``skillhub search``, ``download`` and ``vendor``: finding packs, and fetching them without installing."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skillhub.cli import console, options
from skillhub.environments import Environment, read_project
from skillhub.errors import UsageError
from skillhub.names import is_folder, parse_pack_name
from skillhub.projects import Project
from skillhub.wanted import parse_wanted

if TYPE_CHECKING:
    from skillhub import hub
    from skillhub.sessions import Session

_TEXT_WIDTH = 48  # of what stands below a pack's name, so the table fits 80 columns
_NEAR_AMONG = 500  # the most downloaded packs, which a misspelt name is compared with


@click.command("search")
@click.argument("query", metavar="[QUERY]", default="")
@click.option("--base", metavar="BASE", help="Packs for this base only: OWNER/NAME, a folder or a fingerprint.")
@click.option("--owner", metavar="OWNER", help="Packs of this user or organisation only.")
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="Packs with this tag only; may be repeated.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many to show.")
@options.registry_options
@console.output_options
def search_command(
    query: str,
    base: str | None,
    owner: str | None,
    tags: tuple[str, ...],
    limit: int,
    registry: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Find packs whose name has the words of QUERY; without it, the most downloaded ones.

    \b
    Example:
      skillhub search math --base HuggingFaceTB/SmolLM2-135M-Instruct
    """
    from skillhub import hub

    find = partial(hub.find_packs, query=query, base=_listed_base(base), owner=owner, tags=tags, limit=limit)
    session = options.make_session(None, registry=registry, token=token, offline=False, refresh=False, as_json=as_json)
    asked = _registries(session)
    found = [(one, pack) for one in asked for pack in find(one)][:limit]
    near = [] if found or not query else _near_names(asked, query)
    if as_json:
        console.emit_json({"packs": [_describe(one, pack) for one, pack in found], "near": near})
    elif found:
        _print_found(found, several=len(asked) > 1)
    else:
        click.echo(f"No packs are called like {query!r} here." if query else "No such packs are here.")
        if near:
            click.echo(f"These names look alike: {', '.join(near)}.")


def _listed_base(text: str | None) -> str | None:
    """Return what registries list packs by: the repository of their base, or its fingerprint."""
    if text is None:
        return None
    if text.startswith("skb1:") or is_folder(text):
        from skillhub.basechoice import named_base
        from skillhub.registries import Registries

        return named_base(text, Registries(()), offline=True)[0].fingerprint
    repository = text.partition("@")[0]
    if parse_pack_name(repository).owner is None:
        raise UsageError(
            f"{text} is not a base's repository, by which registries list packs.",
            hint="Write --base OWNER/NAME, as the base model is called on the registry, its fingerprint, or a folder such as ./model.",
        )
    return repository


def _registries(session: Session) -> Sequence[hub.Registry]:
    return session.planner(_project(None)).catalog.registries.all


def _project(environment: Environment | None) -> Project:
    """Return the project of an environment, or of the current folder; an empty one where there is none."""
    chosen = environment or options.chosen_environment(None)
    return read_project(chosen) if chosen else Project()


def _near_names(registries: Sequence[hub.Registry], query: str) -> list[str]:
    """Return names of packs that are spelt nearly like a query that found nothing."""
    from skillhub import hub

    names = [pack.name for one in registries for pack in hub.find_packs(one, limit=_NEAR_AMONG)]
    spelt = {name.lower().rpartition("/" if "/" not in query else "\0")[2]: name for name in reversed(names)}
    return [spelt[one] for one in difflib.get_close_matches(query.lower(), spelt, n=3, cutoff=0.7)]


def _describe(registry: hub.Registry, pack: hub.FoundPack) -> dict[str, Any]:
    return {
        "name": pack.name,
        "registry": registry.name,
        "downloads": pack.downloads,
        "last_modified": pack.last_modified.isoformat() if pack.last_modified else None,
        "base_models": list(pack.base_models),
        "summary": pack.summary,
        "gated": pack.gated,
        "private": pack.private,
    }


def _print_found(found: Sequence[tuple[hub.Registry, hub.FoundPack]], *, several: bool) -> None:
    rows = []
    for registry, pack in found:
        marks = [mark for mark, is_set in (("gated", pack.gated), ("private", pack.private)) if is_set]
        marks += [registry.name] if several else []
        below = [pack.summary, f"for {', '.join(pack.base_models)}" if pack.base_models else ""]
        lines = [
            f"{pack.name} ({', '.join(marks)})" if marks else pack.name,
            *(
                line
                for text in below
                for line in textwrap.wrap(text, _TEXT_WIDTH, initial_indent="  ", subsequent_indent="  ")
            ),
        ]
        updated = f"{pack.last_modified:%Y-%m-%d}" if pack.last_modified else ""
        rows.append(["\n".join(lines), str(pack.downloads), updated])
    console.table(["Pack", "Downloads", "Updated"], rows, right=(1,))


@click.command("download")
@click.argument("requirements", nargs=-1, required=True, metavar="REQUIREMENT...")
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="Where the packs go.")
@click.option("--base", metavar="PATH|REPO|FINGERPRINT", help="Only the variants for this base; else all of them.")
@click.option("--no-deps", is_flag=True, help="Leave out what the packs require.")
@options.source_options
@console.output_options
def download_command(
    requirements: tuple[str, ...],
    folder: Path,
    base: str | None,
    no_deps: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Fetch packs with what they require as pack folders, verified, without installing them.

    The newest releases that will do together are taken. Each lies in a folder of its name, from which it can be
    installed on this machine or another. A PEFT adapter (peft:OWNER/NAME) is fetched as peft saves it.

    \b
    Example:
      skillhub download acme/math-pack -o packs
      skillhub install ./packs/math-pack
    """
    from skillhub.downloading import download

    project = _project(None)
    with console.progress() as progress:
        session = options.make_session(progress, as_json=as_json, **given)
        wanted = session.complete([parse_wanted(text) for text in requirements], [project], None)
        downloads = download(session.planner(project), wanted, folder, base=base, with_dependencies=not no_deps)
    if as_json:
        described = [
            {
                "name": str(one.name),
                "version": one.version,
                "kind": one.kind,
                "digest": one.digest,
                "folder": str(one.folder),
            }
            for one in downloads
        ]
        console.emit_json({"downloaded": described})
        return
    for one in downloads:
        click.echo(f"Downloaded {one} to {one.folder}.")


@click.command("vendor")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--all-variants", is_flag=True, help="Take the packs' variants for every base.")
@options.environment_option
@options.source_options
@console.output_options
def vendor_command(folder: Path, all_variants: bool, environment: Path | None, as_json: bool, **given: Any) -> None:
    """Write everything that a machine without a network needs to install what is locked here.

    Running it again brings DIR up to date. On the other machine, in a folder with the same skillhub.toml and skillhub.lock
    (DIR has copies): skillhub sync --registry DIR.

    \b
    Example:
      skillhub vendor ./vendor
      skillhub sync --registry ./vendor
    """
    from skillhub.vendoring import vendor

    chosen = options.existing_environment(environment)
    with console.progress() as progress:
        session = options.make_session(progress, as_json=as_json, **given)
        supply = session.planner(_project(chosen)).supply
        done = vendor(supply, chosen, folder, all_variants=all_variants, notice=None if as_json else console.say)
    if as_json:
        packs = [{"name": one.name, "version": one.version, "digest": one.manifest} for one in done.packs]
        left_out = [one.name for one in done.left_out]
        told = {"folder": str(done.folder), "registries": list(done.registries), "size": done.size}
        console.emit_json({**told, "packs": packs, "left_out": left_out})
        return
    count = "1 pack" if len(done.packs) == 1 else f"{len(done.packs)} packs"
    click.echo(f"Vendored {count} ({console.size_text(done.size)}) into {done.folder}.")
    click.echo(f"Install from it: skillhub sync --registry {folder}")
