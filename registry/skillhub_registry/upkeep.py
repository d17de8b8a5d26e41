"""The commands that look after the data: ``fsck``, ``gc``, ``audit`` and ``mirror``."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from skillhub.errors import NotFoundError
from skillhub_registry.audit import list_changes
from skillhub_registry.database import Database
from skillhub_registry.garbage import GRACE_SECONDS, Collected, collect_garbage
from skillhub_registry.inspection import inspect_registry
from skillhub_registry.mirrorrecords import drop_mirrors, list_mirrors
from skillhub_registry.options import (
    data_option,
    database_option,
    json_option,
    opening_database,
    read_duration,
    storage_option,
)
from skillhub_registry.registry import Place, open_existing_database, open_storage


@click.command("fsck")
@click.option("--quick", is_flag=True, help="Do not read the files, only see that they are there.")
@data_option
@database_option
@storage_option
@json_option
def check(quick: bool, data: Path, database: str | None, storage: str | None, as_json: bool) -> None:
    """Check that all that is referred to is there, and is what its name says; ends with 1 where something is not.

    It may run while the registry serves.

    \b
    Example:
        skillhub-registry fsck
        skillhub-registry fsck --quick --json
    """  # noqa: D301
    place = Place(data, database, storage)
    opened = open_existing_database(place)
    try:
        findings = list(inspect_registry(opened, open_storage(place), quick=quick))
    finally:
        opened.close()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{finding.kind} {finding.where}\n    {finding.message}. {finding.hint}")
        click.echo(f"{len(findings)} findings." if findings else "Everything is there.", err=True)
    if findings:
        sys.exit(1)


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Say what it would do, and do nothing.")
@click.option(
    "--older-than",
    type=read_duration,
    metavar="TIME",
    default=GRACE_SECONDS,
    show_default="24h",
    help="For how long nothing must have referred to what is removed. Longer than uploads take.",
)
@data_option
@database_option
@storage_option
@json_option
def collect(
    dry_run: bool, older_than: int, data: Path, database: str | None, storage: str | None, as_json: bool
) -> None:
    """Remove what nothing refers to: of deleted repositories, squashed histories and deleted large files.

    A run marks what it finds, and removes what an earlier run has marked long enough ago: let it run daily. It may run
    while the registry serves. Nobody reads any more by their ids the commits that it removes.

    \b
    Example:
        skillhub-registry gc --dry-run
        skillhub-registry gc --older-than 72h
    """  # noqa: D301
    place = Place(data, database, storage)
    opened = open_existing_database(place)
    try:
        done = collect_garbage(opened, open_storage(place), grace=older_than, dry_run=dry_run)
    finally:
        opened.close()
    click.echo(json.dumps({"dry_run": dry_run, **asdict(done)}) if as_json else _describe(done, dry_run))


def _describe(done: Collected, dry_run: bool) -> str:
    verb = "Would remove" if dry_run else "Removed"
    return (
        f"{verb} {done.blobs} blobs ({done.bytes / 1e6:,.1f} MB) and {done.commits} commits; "
        f"{done.marked} blobs ({done.marked_bytes / 1e6:,.1f} MB) wait for a later run."
    )


@click.command("audit")
@click.option("--repository", metavar="NAME", help="Of one repository (acme/pack), under the name that it had then.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, 2**31), help="How many, the latest first."
)
@click.option("--failures/--no-failures", default=None, help="Only what was tried in vain, or none of it.")
@data_option
@database_option
@json_option
def audit(
    repository: str | None, limit: int, failures: bool | None, data: Path, database: str | None, as_json: bool
) -> None:
    """Tell who changed what, who signed in and out, and who tried to in vain, when and from where.

    \b
    Example:
        skillhub-registry audit --repository acme/math-pack
    """  # noqa: D301
    opened = open_existing_database(Place(data, database))
    try:
        with opened.read() as connection:
            entries = list_changes(connection, target=repository, failed=failures, limit=limit)
    finally:
        opened.close()
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries]))
        return
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.made_at))
        mark = "  FAILED" if entry.failed else ""
        click.echo(
            f"{when}  {entry.account} {entry.address}{mark}\n    {entry.action}  {entry.target} {entry.detail}".rstrip()
        )


@click.group()
def mirror() -> None:
    """What is here of the Hub that `serve --mirror` names."""


@mirror.command("list")
@opening_database
@json_option
def list_mirrored(database: Database, as_json: bool) -> None:
    """List the mirrored repositories, and of which Hub they are."""
    with database.read() as connection:
        found = [(repository.full_name, repository.upstream) for repository in list_mirrors(connection)]
    if as_json:
        click.echo(json.dumps([{"name": name, "upstream": upstream} for name, upstream in found]))
        return
    for name, upstream in found:
        click.echo(f"{name}  {upstream}")


@mirror.command("drop")
@click.argument("name")
@opening_database
def drop_mirrored(name: str, database: Database) -> None:
    """Forget a mirrored repository (acme/pack), or all of a namespace (acme), whose name is free then.

    `gc` removes their files. A repository that somebody asks for again is fetched again, unless its namespace has
    become somebody's here.

    \b
    Example:
        skillhub-registry mirror drop acme/math-pack
    """  # noqa: D301
    with database.write() as connection:
        dropped = drop_mirrors(connection, name)
    if not dropped:
        raise NotFoundError(f"There is no mirror {name}.", hint="`skillhub-registry mirror list` names them all.")
    click.echo(f"Forgot {', '.join(dropped)}.", err=True)
