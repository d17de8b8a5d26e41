"""``skillhub trust``: what is remembered of packs, and accepting that a pack has changed hands or keys."""

from __future__ import annotations

import click

from skillhub.cli import console
from skillhub.errors import NotFoundError, UsageError
from skillhub.names import PackName, parse_pack_name
from skillhub.sightings import Sightings, all_sightings, forget


@click.group("trust")
def trust_command() -> None:
    """Show what is remembered of a pack, or accept that it has changed.

    The first time that a pack is met, its releases' digests, its repository and its signer are written down. Whatever
    differs later is refused, until you say that it is right.

    \b
    Example:
      skillhub trust show acme/math-pack
      skillhub trust forget acme/math-pack
    """


@trust_command.command("show")
@click.argument("name", metavar="OWNER/NAME")
@console.output_options
def show(name: str, as_json: bool) -> None:
    """Show what is remembered of a pack: where it was met, its repository, its signer, its releases.

    \b
    Example:
      skillhub trust show acme/math-pack
    """
    pack = _full_name(name)
    found = all_sightings(pack)
    if not found:
        raise _never_met(pack)
    if as_json:
        from msgspec import to_builtins

        places = [to_builtins(one) | {"endpoint": one.registry, "signed_since": one.signed_since} for one in found]
        for place in places:
            del place["schema"], place["registry"]  # the name of a registry, in other results
        console.emit_json({"name": str(pack), "seen": places})
        return
    for one in found:
        _print(pack, one)


def _print(pack: PackName, seen: Sightings) -> None:
    signer = seen.signer or "not signed so far"
    facts = {
        "Repository": seen.repository or "its id was not asked for yet",
        "Signer": f"{signer}, since {seen.signed_since}" if seen.signer and seen.signed_since else signer,
    }
    click.echo(click.style(str(pack), bold=True) + f" at {seen.registry}")
    for title, text in facts.items():
        click.echo(f"  {title + ':':<12}{text}")
    if seen.overrides_locks:
        click.echo("  Forgotten once: what was seen since then counts for more than what locks say.")
    rows = [[one.version, f"{one.seen:%Y-%m-%d %H:%M} UTC", "yes" if one.signed else "no"] for one in seen.releases]
    if rows:
        console.table(["Release", "First seen", "Signed"], rows)


@trust_command.command("forget")
@click.argument("name", metavar="OWNER/NAME")
@console.output_options
def forget_(name: str, as_json: bool) -> None:
    """Forget what is remembered of a pack, so that what is met next is believed.

    Do this only when you know why the pack has changed: its owner made the repository anew, or signs with another key.
    What is installed and locked stays as it is.

    \b
    Example:
      skillhub trust forget acme/math-pack
    """
    pack = _full_name(name)
    places = forget(pack)
    if not places:
        raise _never_met(pack)
    if as_json:
        console.emit_json({"name": str(pack), "endpoints": places})
    else:
        click.echo(f"Forgot what was seen of {pack} at {', '.join(places)}.")


def _full_name(text: str) -> PackName:
    name = parse_pack_name(text)
    if name.owner is None:
        raise UsageError(f"{text} lacks an owner.", hint=f"Write OWNER/{text}.")
    return name


def _never_met(pack: PackName) -> NotFoundError:
    return NotFoundError(
        f"Nothing is remembered of {pack}.", hint="Check the name; `skillhub list` shows what is installed."
    )
