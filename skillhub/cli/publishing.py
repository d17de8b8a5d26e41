"""``skillhub publish``."""

from __future__ import annotations

from pathlib import Path

import click

from skillhub.cli import console, options
from skillhub.packs import open_pack


@click.command("publish")
@click.argument("pack_folder", metavar="PACK", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of publishing directly.")
@options.registry_options
@console.output_options
def publish_command(
    pack_folder: Path, repository: str, create_pr: bool, registry: str | None, token: str | None, as_json: bool
) -> None:
    """Publish the built pack in the folder PACK as a release of OWNER/NAME.

    The release appears in one commit: whole, or not at all. Publishing the same pack again changes nothing; another
    pack under a version that exists is refused.

    \b
    Example:
      skillhub publish ./math-pack acme/math-pack
    """
    from skillhub.publisher import publish

    pack = open_pack(pack_folder)
    with console.progress() as progress:
        done = publish(
            pack,
            repository,
            registry=registry,
            token=token,
            create_pr=create_pr,
            progress=progress,
            notice=None if as_json else console.say,
        )
    version = done.release.version
    if as_json:
        result = {"repository": done.repository, "version": str(version), "digest": done.release.manifest_digest}
        told = {"commit": done.commit, "pull_request": done.pull_request, "already_there": done.already_there}
        console.emit_json({**result, **told})
    elif done.pull_request:
        click.echo(f"Proposed {done.repository} {version}: {done.pull_request}")
    else:
        size = console.size_text(sum(variant.size for variant in pack.manifest.variants))
        if not done.already_there:
            click.echo(f"Published {done.repository} {version} ({size}).")
        click.echo(f"Install it: skillhub install {done.repository}=={version}")
