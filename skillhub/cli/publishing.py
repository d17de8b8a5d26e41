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
    r"""Publish the built pack in the folder PACK as a release of OWNER/NAME.

    The release appears in one commit: whole, or not at all. Publishing the same pack again changes nothing; another
    pack under a version that exists is refused.

    \b
    Example:
      skillhub publish ./math-pack acme/math-pack
    """
    from skillhub.publisher import publish

    pack = open_pack(pack_folder)
    with console.progress() as progress:
        release = publish(
            pack,
            repository,
            registry=registry,
            token=token,
            create_pr=create_pr,
            progress=progress,
            notice=None if as_json else console.say,
        )
    if as_json:
        console.emit_json(
            {"repository": repository, "version": str(release.version), "digest": release.manifest_digest}
        )
        return
    click.echo(f"Published {repository} {release.version} ({console.size_text(_size(pack_folder))}).")
    click.echo(f"Install it: skillhub install {repository}=={release.version}")


def _size(folder: Path) -> int:
    return sum(variant.size for variant in open_pack(folder).manifest.variants)
