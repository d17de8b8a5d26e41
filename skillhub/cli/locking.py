"""``skillhub init``, ``lock`` and ``sync``: projects and their locks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from skillhub.cli import console, options
from skillhub.cli.outcomes import print_outcome
from skillhub.environments import Environment, as_environment, find_project
from skillhub.errors import UsageError
from skillhub.projects import PROJECT_FILE

_TEMPLATE = """\
# What this project's environment holds. `skillhub install` adds to it, `skillhub sync` installs it.

requirements = []

# Owners to look through, in order, for names without an owner:
# owners = ["acme"]

# Narrow the versions of packs that others require; replace what anyone requires of a pack:
# constraints = ["acme/shared<2"]
# overrides = ["acme/shared==1.4"]

# Leave releases alone that were published later; let pre-releases do:
# exclude_newer = "2026-01-01T00:00:00Z"
# pre_releases = true

# More registries, asked in order before HF_ENDPOINT; with `packs`, for those only, and those only there:
# registry = [{ name = "corp", url = "https://hub.corp.example", packs = ["corp/*"] }]
"""


@click.command("init")
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False), metavar="[DIR]")
@click.option("--base", metavar="PATH|REPO|FINGERPRINT", help="The base model that packs will be for.")
@console.output_options
def init_command(folder: Path | None, base: str | None, as_json: bool) -> None:
    """Make DIR (or this folder) a project, with a skillhub.toml of its own.

    Commands that run inside it use its environment. Commit skillhub.toml and skillhub.lock; .skillhub/ stays out of
    version control.

    \b
    Example:
      skillhub init assistant --base ./SmolLM2-135M-Instruct
    """
    from skillhub.files import write_atomically

    place = as_environment(folder or Path())
    text = _TEMPLATE.encode() if base is None else _with_base(_TEMPLATE.encode(), base)
    with place.hold():
        if place.project_path.exists():
            raise UsageError(
                f"{place.project_path} exists already.", hint="Change that file, or choose another folder."
            )
        write_atomically(place.project_path, text)
        write_atomically(place.folder / ".skillhub" / ".gitignore", b"*\n")
    if as_json:
        console.emit_json({"environment": str(place.folder), "project": str(place.project_path)})
        return
    click.echo(f"Made {place.project_path}. Add a pack: skillhub install OWNER/NAME")


def _with_base(text: bytes, base: str) -> bytes:
    from msgspec import structs

    from skillhub.basechoice import require_base
    from skillhub.projects import parse_project, updated_text
    from skillhub.sessions import Session

    chosen = require_base(Session().planner(parse_project(text)), base)
    return updated_text(text, structs.replace(parse_project(text), base=[chosen]))


@click.command("lock")
@click.option("--check", is_flag=True, help="Change nothing; exit code 10 if the lock would have to change.")
@options.dry_run_option
@options.source_options
@options.environment_option
@console.output_options
def lock_command(check: bool, dry_run: bool, environment: Path | None, as_json: bool, **given: Any) -> None:
    """Bring skillhub.lock up to date with skillhub.toml and with what was published; install nothing.

    What is locked stays while it will do; `skillhub upgrade` moves it.

    \b
    Example:
      skillhub lock --check
    """
    from skillhub.changes import locked_changes
    from skillhub.installer import lock
    from skillhub.lockfile import read_lock
    from skillhub.transactions import Terms

    place = _project(environment)
    before = read_lock(place.lock_path)
    with console.progress() as progress:
        session = options.make_session(progress, as_json=as_json, **given)
        outcome = lock(session, place, Terms(locked=check, dry_run=dry_run or check))
    moved = locked_changes(before, outcome.lock, outcome.environment)
    if as_json:
        print_outcome(replace(outcome, changes=tuple(moved)), dry_run=dry_run or check, as_json=True)
        return
    for one in moved:
        click.echo(_lock_line(one.before, one.after, str(one.name)))
    count = len(outcome.lock.packs)
    click.echo(
        f"{'Locked' if outcome.lock_changed and not dry_run else 'The lock has'} {count} pack{'s' * (count != 1)}."
    )


def _lock_line(before: str | None, after: str | None, name: str) -> str:
    if before is None:
        return f"+ {name} {after}"
    return f"- {name} {before}" if after is None else f"~ {name} {before} → {after}"


@click.command("sync")
@click.option("--inexact", is_flag=True, help="Leave packs that nothing asks for.")
@click.option("--reinstall", is_flag=True, help="Put every pack in its place anew.")
@options.lock_options
@options.source_options
@options.environment_option
@console.output_options
def sync_command(
    inexact: bool,
    reinstall: bool,
    locked: bool,
    frozen: bool,
    dry_run: bool,
    environment: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Make the environment hold exactly what skillhub.lock says.

    A lock that is not up to date with skillhub.toml is brought up to date first. When everything is installed already,
    no server is asked.

    \b
    Example:
      skillhub sync --locked
      skillhub sync --registry ./vendor --offline
    """
    from skillhub.installer import sync
    from skillhub.transactions import Terms

    terms = Terms(locked=locked, frozen=frozen, dry_run=dry_run, reinstall=reinstall, inexact=inexact)
    with console.progress() as progress:
        session = options.make_session(progress, as_json=as_json, **given)
        outcome = sync(session, _project(environment), terms)
    print_outcome(outcome, dry_run=dry_run, as_json=as_json)


def _project(folder: Path | None) -> Environment:
    """Return the environment to lock; a folder with a lock or a project file is one, installed or not."""
    chosen = Environment(folder) if folder else find_project()
    if chosen and (chosen.project_path.is_file() or chosen.lock_path.is_file()):
        return as_environment(chosen)
    if chosen:
        raise UsageError(f"{chosen.folder} has no {PROJECT_FILE}.", hint=f"Make one: skillhub init {chosen.folder}.")
    return options.existing_environment(None)
