"""``skillhub install``, ``uninstall`` and ``upgrade``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skillhub.cli import completion, console, options
from skillhub.cli.outcomes import change_line, describe_asked, describe_change, print_outcome
from skillhub.errors import UsageError, located
from skillhub.names import is_folder

if TYPE_CHECKING:
    from skillhub.names import PackName
    from skillhub.transactions import Edit, Terms
    from skillhub.wanted import Wanted


@click.command("install")
@click.argument("requirements", nargs=-1, metavar="[REQUIREMENT]...")
@click.option(
    "-r", "--requirement", "files", multiple=True, type=click.Path(path_type=Path), help="Read a file of them."
)
@click.option("--base", metavar="PATH|REPO|FINGERPRINT", help="The base model that the packs are for.")
@click.option("--owner", "owners", multiple=True, metavar="OWNER", help="Look for short names there; may be repeated.")
@click.option("--constraint", "-c", "constraints", multiple=True, metavar="TEXT|FILE", help="Narrow a pack's versions.")
@click.option("--override", "overrides", multiple=True, metavar="TEXT", help="Replace all requirements on a pack.")
@click.option("--pre", is_flag=True, help="Let pre-releases do.")
@click.option("--exclude-newer", metavar="DATE", help="Leave releases alone that were published later.")
@click.option("--no-deps", is_flag=True, help="Leave out what the packs require.")
@click.option("--require-hashes", is_flag=True, help="Refuse what has no --hash in a requirements file.")
@click.option("--reinstall", is_flag=True, help="Put every pack in its place anew.")
@options.lock_options
@options.source_options
@options.environment_option
@console.output_options
def install_command(
    requirements: tuple[str, ...], environment: Path | None, dry_run: bool, as_json: bool, **given: Any
) -> None:
    """Install packs with what they require; without REQUIREMENT, what the environment asks for.

    A requirement is a name (acme/math-pack), with versions ('acme/math-pack>=1.2,<2') or at a commit
    (acme/math-pack@COMMIT), a PEFT adapter (peft:acme/lora), or the folder of a built pack (./math-pack). It is added to
    skillhub.toml, with the rules that --constraint, --override, --pre and --exclude-newer state; the choice is locked
    in skillhub.lock, and every byte is checked before it is installed.

    \b
    Example:
      skillhub install acme/math-pack --base ./SmolLM2-135M-Instruct
      skillhub install -r requirements.txt --locked
    """
    from skillhub.installer import install_into

    edit, terms = _edit_and_terms(requirements, dry_run=dry_run, **given)
    with console.progress() as progress:
        session = options.make_session(
            progress,
            registry=given["registry"],
            token=given["token"],
            offline=given["offline"],
            refresh=given["refresh"],
            as_json=as_json,
        )
        outcome = install_into(session, options.chosen_environment(environment), edit, terms)
    print_outcome(outcome, dry_run=dry_run, as_json=as_json, installed=describe_asked(outcome))


def _edit_and_terms(requirements: Sequence[str], *, dry_run: bool, **given: Any) -> tuple[Edit, Terms]:
    """Return what the options of ``install`` come to."""
    from skillhub.installer import read_wanted
    from skillhub.plans import Choice
    from skillhub.transactions import Edit, Terms

    wanted, hashes, narrowed = _read_files(given["files"])
    added = (*read_wanted(requirements), *wanted)
    if given["frozen"] and added:
        raise UsageError("--frozen installs what is locked and adds nothing.", hint="Leave out --frozen, or the packs.")
    edit = Edit(
        add=added,
        constraints=(*_read_rules(given["constraints"]), *narrowed),
        overrides=given["overrides"],
        owners=given["owners"],
        exclude_newer=given["exclude_newer"],
        pre_releases=True if given["pre"] else None,
        base_text=given["base"],
    )
    terms = Terms(
        choice=Choice(with_dependencies=not given["no_deps"]),
        locked=given["locked"],
        frozen=given["frozen"],
        dry_run=dry_run,
        reinstall=given["reinstall"],
        hashes=hashes if given["require_hashes"] or hashes else None,
    )
    return edit, terms


def _read_files(files: Sequence[Path]) -> tuple[list[Wanted], dict[PackName, frozenset[str]], list[str]]:
    """Return the requirements of files, the hashes that they give, and the constraints among them."""
    from skillhub.requirementfiles import read_requirement_file
    from skillhub.wanted import parse_wanted

    wanted: list[Wanted] = []
    hashes: dict[PackName, frozenset[str]] = {}
    constraints: list[str] = []
    for line in [line for file in files for line in read_requirement_file(file)]:
        if line.constraint:
            constraints.append(line.text)
            continue
        with located(line.where):
            one = parse_wanted(line.text, start=line.start)
        wanted.append(one)
        if line.hashes:
            hashes[one.name] = hashes.get(one.name, frozenset()) | frozenset(line.hashes)
    return wanted, hashes, constraints


def _read_rules(texts: Sequence[str]) -> list[str]:
    """Return constraints; a text that is written as a path, or ends in .txt, is a file of them."""
    from skillhub.requirementfiles import read_requirement_file

    rules: list[str] = []
    for text in texts:
        if is_folder(text) or text.endswith(".txt"):
            rules += [line.text for line in read_requirement_file(Path(text).expanduser(), constraint=True)]
        else:
            rules.append(text)
    return rules


@click.command("uninstall")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completion.complete_packs)
@options.environment_option
@console.output_options
def uninstall_command(names: tuple[str, ...], environment: Path | None, as_json: bool) -> None:
    """Remove installed packs, and what only they required; the store keeps the bytes.

    \b
    Example:
      skillhub uninstall acme/math-pack
    """
    from skillhub.installer import uninstall

    place = options.existing_environment(environment)
    with console.progress():
        removed = uninstall(names, environment=place)
    if as_json:
        console.emit_json({"environment": str(place.folder), "changes": [describe_change(one) for one in removed]})
        return
    for one in removed:
        click.echo(change_line(one))


@click.command("upgrade")
@click.argument("names", nargs=-1, metavar="[PACK]...", shell_complete=completion.complete_packs)
@click.option("--all", "everything", is_flag=True, help="Upgrade every pack; the same as naming none.")
@click.option("--precise", metavar="VERSION", help="Move the one PACK to this version, which may be older.")
@options.dry_run_option
@options.source_options
@options.environment_option
@console.output_options
def upgrade_command(
    names: tuple[str, ...],
    everything: bool,
    precise: str | None,
    dry_run: bool,
    environment: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Move packs to the newest releases that the requirements allow; without PACK, all of them.

    The other packs stay as they are locked, unless a newer release needs them to move.

    \b
    Example:
      skillhub upgrade
      skillhub upgrade acme/math-pack --precise 1.2.0
    """
    from skillhub.installer import upgrade
    from skillhub.transactions import Terms

    if everything and names:
        raise UsageError("--all and names exclude each other.", hint="Leave one of them out.")
    with console.progress() as progress:
        session = options.make_session(progress, as_json=as_json, **given)
        place = options.existing_environment(environment)
        outcome = upgrade(session, place, names, Terms(dry_run=dry_run), precise=precise)
    print_outcome(outcome, dry_run=dry_run, as_json=as_json)
