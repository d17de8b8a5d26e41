"""``skillhub publish``, ``yank``, ``unyank`` and ``deprecate``: releases, and taking them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from skillhub.cli import completion, console, options
from skillhub.packs import open_pack

if TYPE_CHECKING:
    from skillhub.announcements import Access, Place
    from skillhub.progress import Progress
    from skillhub.publisher import Draft, Publication
    from skillhub.withdrawals import Withdrawal

Command = TypeVar("Command", bound=Callable[..., Any])


def _place_options(command: Command) -> Command:
    """Add ``--registry`` and ``--token``."""
    command = options.token_option(command)
    return click.option(
        "--registry",
        metavar="NAME|URL",
        shell_complete=completion.complete_registries,
        help="A configured registry, or an address; else the one that the pack is pinned to, or HF_ENDPOINT.",
    )(command)


@click.command("publish")
@click.argument("pack_folder", metavar="PACK", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--dry-run", is_flag=True, help="Say what would be published and what is missing; send nothing.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of publishing directly.")
@click.option("--sign/--no-sign", default=None, help="Sign the release, or not; else it is signed if you have a key.")
@click.option("--allow-signer-change", is_flag=True, help="Publish although earlier releases have another signer.")
@_place_options
@console.output_options
def publish_command(
    pack_folder: Path,
    repository: str,
    dry_run: bool,
    create_pr: bool,
    sign: bool | None,
    allow_signer_change: bool,
    registry: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Publish the built pack in the folder PACK as a release of OWNER/NAME.

    The release appears in one commit: whole, or not at all. Publishing the same pack again changes nothing; another
    pack under a version that exists is refused. What is published can be yanked, and never changed: warnings say first
    what is missing, and --dry-run says nothing else.

    With a key of your own (`skillhub key new`) every release is signed.

    \b
    Example:
      skillhub publish ./math-pack acme/math-pack --dry-run
      skillhub publish ./math-pack acme/math-pack
    """
    from skillhub.publisher import draft_release, publish_draft, refuse_proposal_to_nowhere

    pack = open_pack(pack_folder)
    with console.progress() as progress:
        access = _access(registry, token, as_json=as_json, progress=progress)
        draft = draft_release(
            pack, repository, access, sign=sign, allow_signer_change=allow_signer_change, dry_run=dry_run
        )
        if create_pr:
            refuse_proposal_to_nowhere(draft)
        if not as_json:
            for finding in draft.findings:
                console.say(str(finding))
        done = None if dry_run else publish_draft(draft, access, create_pr=create_pr)
    if done is None:
        _show_draft(draft, access, create_pr=create_pr, as_json=as_json)
    elif as_json:
        console.emit_json(_described(draft, done))
    else:
        _print_done(draft, done)


def _access(registry: str | None, token: str | None, *, as_json: bool, progress: Progress | None = None) -> Access:
    """Return where to write, and as whom; with ``--json`` notices are not printed."""
    from skillhub.announcements import Access
    from skillhub.environments import find_project, read_project

    project = find_project()
    entries = read_project(project).registry if project else ()
    listening: dict[str, Any] = {} if as_json else {"notice": console.say}
    return Access(registry, token, entries, progress, **listening)


def _described(draft: Draft, done: Publication | None) -> dict[str, Any]:
    """Return what ``--json`` says of a release, published or not."""
    from msgspec import to_builtins

    release = done.release if done else draft.published
    return {
        **_where(draft.place),
        "version": draft.manifest.version,
        "digest": release.manifest_digest if release else draft.manifest.digest,
        "signer": done.signer if done else draft.signer,
        "commit": done.commit if done else None,
        "pull_request": done.pull_request if done else None,
        "already_there": draft.published is not None if done is None else done.already_there,
        "findings": to_builtins(draft.findings),
    }


def _where(place: Place) -> dict[str, Any]:
    return {"name": str(place.name), "registry": place.registry.name, "endpoint": place.registry.address}


def _print_done(draft: Draft, done: Publication) -> None:
    version, size = done.release.version, console.size_text(sum(one.size for one in draft.manifest.variants))
    if done.pull_request:
        click.echo(f"Proposed {done.repository} {version}: {done.pull_request}")
    elif not done.already_there:
        click.echo(f"Published {done.repository} {version} ({size}).")
    if not done.already_there:
        click.echo(f"Signed by {done.signer}." if done.signer else "Not signed.")
    if done.release.yanked is not None:
        return
    wanted = f"@{done.commit}" if done.pull_request else f"=={version}"
    click.echo(f"{'Try' if done.pull_request else 'Install'} it: skillhub install {done.repository}{wanted}")


def _show_draft(draft: Draft, access: Access, *, create_pr: bool, as_json: bool) -> None:
    """Print what a commit would add, and that nothing was sent."""
    from skillhub.releases import event_line

    name, address = draft.place.name, draft.place.registry.address
    sizes = {} if draft.published else draft.file_sizes(access.notice)
    if as_json:
        import json

        files = [{"path": path, "size": size} for path, size in sorted(sizes.items())]
        planned = {"dry_run": True, "creates_repository": draft.state.head is None, "files": files}
        event = None if draft.published else json.loads(event_line(draft.event))
        console.emit_json({**_described(draft, None), **planned, "event": event})
        return
    if draft.published:
        click.echo(f"{name} {draft.manifest.version} is at {address} already: nothing would be done.")
        return
    rows = [[path, console.size_text(size)] for path, size in sorted(sizes.items())]
    console.table(["File", "Size"], rows, right=(1,))
    verb = "propose" if create_pr else "publish"
    new = ", in a new repository" if draft.state.head is None else ""
    signed = f"signed by {draft.signer}" if draft.signer else "not signed"
    click.echo(f"One commit would {verb} {name} {draft.manifest.version} at {address}{new}, {signed}.")
    click.echo(f"Its line in releases.jsonl: {event_line(draft.event).decode().rstrip()}")
    click.echo("Nothing was sent.")


@click.command("yank")
@click.argument("release", metavar="OWNER/NAME==VERSION")
@click.option("--reason", metavar="TEXT", help="Why; whoever has the release is told.")
@_place_options
@console.output_options
def yank_command(release: str, reason: str | None, registry: str | None, token: str | None, as_json: bool) -> None:
    """Withdraw a release: nothing chooses it any more, and locks that have it keep it, with a warning.

    Nothing is deleted, so no installation breaks; `skillhub unyank` takes it back.

    \b
    Example:
      skillhub yank acme/math-pack==1.1.0 --reason "wrong weights, use 1.1.1"
    """
    from skillhub.withdrawals import yank

    _report(yank(release, _access(registry, token, as_json=as_json), reason=reason), as_json=as_json)


@click.command("unyank")
@click.argument("release", metavar="OWNER/NAME==VERSION")
@_place_options
@console.output_options
def unyank_command(release: str, registry: str | None, token: str | None, as_json: bool) -> None:
    """Let a yanked release be chosen again.

    \b
    Example:
      skillhub unyank acme/math-pack==1.1.0
    """
    from skillhub.withdrawals import unyank

    _report(unyank(release, _access(registry, token, as_json=as_json)), as_json=as_json)


@click.command("deprecate")
@click.argument("name", metavar="OWNER/NAME")
@click.option("--reason", metavar="TEXT", help="Why, and what to use instead.")
@_place_options
@console.output_options
def deprecate_command(name: str, reason: str | None, registry: str | None, token: str | None, as_json: bool) -> None:
    """Tell everybody who installs a pack that it should not be used any more.

    It goes on working, and you can go on publishing. This cannot be taken back; deprecating it again replaces the reason.

    \b
    Example:
      skillhub deprecate acme/math-pack --reason "use acme/maths instead"
    """
    from skillhub.withdrawals import deprecate

    _report(deprecate(name, _access(registry, token, as_json=as_json), reason=reason), as_json=as_json)


_DONE = {
    "yank": ("Yanked {}", "{} is yanked already"),
    "unyank": ("Unyanked {}", "{} is not yanked"),
    "deprecate": ("Deprecated {}", "{} is deprecated already"),
}


def _report(done: Withdrawal, *, as_json: bool) -> None:
    event = done.event
    if as_json:
        told = {"event": event.event, "version": event.version, "reason": event.reason}
        console.emit_json({**_where(done.place), **told, "commit": done.commit, "already_so": done.already_so})
        return
    what = f"{done.place.name} {event.version}" if event.version else str(done.place.name)
    click.echo(f"{_DONE[event.event][done.already_so].format(what)}.")
