"""``skillhub cache``: looking at the store of downloaded files, and making room."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from skillhub import remembered, settings
from skillhub.cli import console, options
from skillhub.configuration import configuration_path, parse_size, read_configuration
from skillhub.environments import Environment, as_environment, user_environments
from skillhub.errors import FINDINGS_EXIT_CODE, UsageError
from skillhub.store import Blob, default_store, read_blobs

if TYPE_CHECKING:
    from skillhub.inventory import StoredPack
    from skillhub.pruning import Removed

Command = TypeVar("Command", bound=Callable[..., Any])

_AGE = re.compile(r"([0-9]{1,6})\s*([hdw])", re.IGNORECASE)
_SECONDS = {"h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}


def _age(text: str) -> int:
    found = _AGE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is not an age such as 30d, 12h or 2w")
    return int(found[1]) * _SECONDS[found[2].lower()]


def _environments_option(command: Command) -> Command:
    return click.option(
        "--environment",
        "-e",
        "folders",
        multiple=True,
        type=click.Path(path_type=Path, file_okay=False),
        help="Another environment to look into, besides your own and the project around the current folder.",
    )(command)


def _environments(folders: Sequence[Path]) -> list[Environment]:
    """Return the environments whose receipts are read: one's own, the current project, and those that were named."""
    around = options.chosen_environment(None)
    named = [options.existing_environment(folder) for folder in folders]
    found = [*user_environments(), *([around] if around else []), *named]
    return list({one.folder: one for one in map(as_environment, found)}.values())


@click.group("cache")
def cache_command() -> None:
    """Look at the store of downloaded files, and make room.

    Environments have their files for themselves: whatever goes here, what is installed stays.

    \b
    Example:
      skillhub cache list
      skillhub cache prune --max-size 20GB
    """


@cache_command.command("dir")
@console.output_options
def folder_(as_json: bool) -> None:
    """Print where the cache is.

    \b
    Example:
      du -sh "$(skillhub cache dir)"
    """
    if as_json:
        console.emit_json({"folder": str(settings.cache_folder()), "store": str(default_store().folder)})
    else:
        click.echo(settings.cache_folder())


@cache_command.command("size")
@console.output_options
def size(as_json: bool) -> None:
    """Say how much room the cache takes.

    \b
    Example:
      skillhub cache size
    """
    from skillhub.pruning import own_bytes

    blobs = read_blobs(default_store())
    total, own = sum(blob.size for blob in blobs), own_bytes(blobs)
    memos = sum(path.stat().st_size for path in remembered.all_memos())
    limit = read_configuration().cache_limit_bytes
    if as_json:
        told = {"files": len(blobs), "size": total, "shared": total - own, "own": own}
        console.emit_json({**told, "fingerprints": memos, "limit": limit})
        return
    click.echo(f"{_files(len(blobs))}, {console.size_text(total)}, in {default_store().folder}")
    click.echo(f"  {console.size_text(total - own)} of it is shared with environments and takes no room twice.")
    click.echo(f"  {console.size_text(own)} would be free after `skillhub cache clean`.")
    if limit is not None:
        click.echo(f"  After an installation it is pruned to {console.size_text(limit)} of its own.")
    click.echo(f"Remembered fingerprints: {console.size_text(memos)}")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


@cache_command.command("list")
@click.option("--files", "each", is_flag=True, help="List every file by its digest.")
@_environments_option
@console.output_options
def list_(each: bool, folders: tuple[Path, ...], as_json: bool) -> None:
    """List the releases that the store has files of.

    It tells what removing them would free, and when they were last used. A file that several releases share is counted for each. What environments share as well frees nothing.

    \b
    Example:
      skillhub cache list
      skillhub cache list --files
    """
    from skillhub.inventory import find_packs, nameless

    blobs = read_blobs(default_store())
    packs = find_packs(blobs, _environments(folders))
    others = nameless(blobs, packs)
    if as_json:
        described = [_describe_pack(one) for one in packs]
        files = [_describe_blob(blob, packs) for blob in blobs]
        console.emit_json({"folder": str(default_store().folder), "packs": described, "files": files})
    elif not blobs:
        click.echo("The store is empty.")
    elif each:
        rows = [[blob.digest[:12], _names(blob, packs), *_facts([blob])] for blob in blobs]
        console.table(["Digest", "Of", "Size", "Frees", "Last used"], rows, right=(2, 3))
    else:
        rows = [[str(one), str(len(one.blobs)), *_facts(one.blobs)] for one in packs]
        if others:
            rows.append(["of no known pack", str(len(others)), *_facts(others)])
        console.table(["Release", "Files", "Size", "Frees", "Last used"], rows, right=(1, 2, 3))


def _facts(blobs: Sequence[Blob]) -> list[str]:
    from skillhub.pruning import own_bytes

    last = datetime.fromtimestamp(max(blob.used for blob in blobs))
    size = sum(blob.size for blob in blobs)
    return [console.size_text(size), console.size_text(own_bytes(blobs)), f"{last:%Y-%m-%d %H:%M}"]


def _names(blob: Blob, packs: Sequence[StoredPack]) -> str:
    return ", ".join(str(one) for one in packs if blob in one.blobs) or "no known pack"


def _describe_pack(one: StoredPack) -> dict[str, Any]:
    from skillhub.pruning import own_bytes

    return {
        "name": one.name,
        "version": one.version,
        "digest": one.digest,
        "files": len(one.blobs),
        "size": sum(blob.size for blob in one.blobs),
        "frees": own_bytes(one.blobs),
        "last_used": _time(max(blob.used for blob in one.blobs)),
        "environments": [str(place.folder) for place in one.environments],
    }


def _describe_blob(blob: Blob, packs: Sequence[StoredPack] = ()) -> dict[str, Any]:
    facts = {"digest": blob.digest, "size": blob.size, "shared": blob.is_shared, "last_used": _time(blob.used)}
    return facts | {"packs": [str(one) for one in packs if blob in one.blobs]}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


@cache_command.command("prune")
@click.option(
    "--max-size",
    metavar="SIZE",
    callback=options.read_by(parse_size),
    help="Remove the least recently used files until the rest takes at most this, such as 20GB.",
)
@click.option(
    "--older-than", metavar="AGE", callback=options.read_by(_age), help="Only what was last used before, as in 30d."
)
@click.option("--unused", is_flag=True, help="Only what no environment has that is known here.")
@options.dry_run_option
@_environments_option
@console.output_options
def prune_(
    max_size: int | None,
    older_than: int | None,
    unused: bool,
    dry_run: bool,
    folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Remove files that meet every condition given.

    The least recently used ones go first. Files whose bytes an environment shares stay: removing them would free nothing. Without a condition the cache_limit of
    config.toml is the size to keep to. What killed processes left behind, and fingerprints of files that have changed, go
    in any case.

    \b
    Example:
      skillhub cache prune --max-size 20GB
      skillhub cache prune --unused --older-than 30d --dry-run
    """
    from skillhub.inventory import installed_digests
    from skillhub.pruning import Rules, prune

    limit = max_size
    if max_size is None and older_than is None and not unused:
        limit = read_configuration().cache_limit_bytes
    rules = None
    if limit is not None or older_than is not None or unused:
        rules = Rules(
            max_bytes=limit,
            used_before=None if older_than is None else time.time() - older_than,
            keep=installed_digests(_environments(folders)) if unused else frozenset(),
        )
    removed = prune(default_store(), rules, dry_run=dry_run, notice=None if as_json else console.say)
    _print_removed(removed, dry_run=dry_run, as_json=as_json)
    if rules is None and not as_json:
        console.say(
            f"Only leftovers were looked for: give --max-size, --older-than or --unused, or set cache_limit in "
            f"{configuration_path()}."
        )


@cache_command.command("clean")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@options.dry_run_option
@console.output_options
def clean_(yes: bool, dry_run: bool, as_json: bool) -> None:
    """Remove everything; what is installed stays.

    All remembered fingerprints go, too. What environments share takes room until it is uninstalled there.

    \b
    Example:
      skillhub cache clean --yes
    """
    from skillhub.pruning import clean

    if not (yes or dry_run):
        _ask()
    removed = clean(default_store(), dry_run=dry_run, notice=None if as_json else console.say)
    _print_removed(removed, dry_run=dry_run, as_json=as_json)


def _ask() -> None:
    if not sys.stdin.isatty():
        raise UsageError(
            "Nobody can be asked whether to remove everything from the store.",
            hint="If that is what you want: skillhub cache clean --yes.",
        )
    total = console.size_text(sum(blob.size for blob in read_blobs(default_store())))
    click.confirm(f"Remove everything ({total}) from {default_store().folder}?", abort=True, err=True)


def _print_removed(removed: Removed, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        told = {"dry_run": dry_run, "size": removed.size, "freed": removed.freed, "leftovers": removed.leftovers}
        console.emit_json({"removed": [_describe_blob(blob) for blob in removed.blobs], **told})
        return
    if not (removed.blobs or removed.leftovers):
        click.echo("There is nothing to remove.")
        return
    verb, frees = ("Would remove", "would free") if dry_run else ("Removed", "freed")
    what = f"{_files(len(removed.blobs))} ({console.size_text(removed.size)}) from the store"
    if removed.leftovers:
        what += f" and {removed.leftovers} leftover{'' if removed.leftovers == 1 else 's'}"
    click.echo(f"{verb} {what}; {frees} {console.size_text(removed.freed)}.")
    kept = removed.size + removed.leftover_bytes - removed.freed
    if kept:
        click.echo(f"The other {console.size_text(kept)} environments have as well, so they stay on the disk.")


@cache_command.command("verify")
@click.option("--repair", is_flag=True, help="Remove what is damaged; it is fetched again when it is needed.")
@_environments_option
@console.output_options
@click.pass_context
def verify_(context: click.Context, repair: bool, folders: tuple[Path, ...], as_json: bool) -> None:
    """Read every file of the store through.

    The exit code is 1 when one is damaged, also if it is then removed.

    \b
    Example:
      skillhub cache verify
      skillhub cache verify --repair
    """
    from skillhub.inventory import find_packs
    from skillhub.pruning import Removed, find_damage, remove_damaged

    store = default_store()
    with console.progress() as progress:
        total, done = sum(blob.size for blob in read_blobs(store)), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress("Reading", done, total)

        count, damaged = find_damage(store, progress=advance)
    packs = find_packs(read_blobs(store), _environments(folders)) if damaged else []
    removed = Removed()
    if repair and damaged:
        removed = remove_damaged(store, damaged, notice=None if as_json else console.say)
    if as_json:
        findings = [one.error.to_json() | {"packs": _describe_blob(one.blob, packs)["packs"]} for one in damaged]
        gone = [blob.digest for blob in removed.blobs]
        console.emit_json({"files": count, "ok": not damaged, "findings": findings, "removed": gone})
    else:
        for one in damaged:
            click.echo(f"{one.error.message} It is of {_names(one.blob, packs)}. {one.error.hint}")
        if repair and damaged:
            click.echo(f"Removed {_files(len(removed.blobs))}.")
        elif not damaged:
            click.echo(f"{_files(count)} verified: every byte is what its name says.")
    if damaged:
        context.exit(FINDINGS_EXIT_CODE)
