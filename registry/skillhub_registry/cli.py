"""The command line: serve the registry, and look after its accounts and tokens."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from skillhub.errors import MissingExtraError, SkillhubError, UsageError
from skillhub_registry import accounts, exclusion, limits, tokens
from skillhub_registry.database import Database
from skillhub_registry.errors import HubError
from skillhub_registry.options import (
    ask_password,
    check_arguments,
    data_option,
    database_option,
    json_option,
    making_database,
    mirror_options,
    opening_database,
    read_duration,
    storage_option,
)
from skillhub_registry.rates import Rates
from skillhub_registry.reaches import find_reach
from skillhub_registry.registry import Mirrored, Place
from skillhub_registry.upkeep import audit, check, collect, mirror

DEFAULT_PORT = 8765


def main() -> None:
    """Run the command line; errors end in a sentence, a hint and an exit code."""
    try:
        check_arguments(sys.argv[1:])
        commands(standalone_mode=True)
    except SkillhubError as error:
        _fail(error)
    except HubError as error:
        _fail(UsageError(f"{error.message}."))


def _fail(error: SkillhubError) -> None:
    click.echo(f"Error: {error.message}", err=True)
    if error.hint:
        click.echo(f"Hint: {error.hint}", err=True)
    sys.exit(error.exit_code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """A registry for SkillPacks and models that speaks the Hugging Face Hub's protocol."""


@commands.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes any free one."
)
@click.option(
    "--part-size", default=64, show_default=True, type=click.IntRange(1, 5000), help="MiB of a part of an LFS upload."
)
@data_option
@database_option
@storage_option
@click.option(
    "--proxy-downloads", is_flag=True, help="Send files from the storage through here: clients cannot reach it."
)
@click.option(
    "--api-limit",
    default=3000,
    show_default=True,
    type=click.IntRange(0),
    help="API calls of one caller in 5 minutes; 0: any.",
)
@click.option("--download-limit", default=15000, show_default=True, type=click.IntRange(0), help="Downloads, likewise.")
@click.option(
    "--max-file-size", default=200_000, show_default=True, type=click.IntRange(1, 200_000), help="MB of one file."
)
@click.option(
    "--max-repository-size",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="MB of all large files of a repository; 0: any.",
)
@click.option("--limit-local", is_flag=True, help="Limit callers on this machine as well.")
@click.option("--public-metrics", is_flag=True, help="Let everybody read /metrics, not accounts and this machine only.")
@mirror_options
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Log every request, to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Say where it listens as one JSON line on stdout.")
def serve(
    host: str,
    port: int,
    part_size: int,
    data: Path,
    database: str | None,
    storage: str | None,
    proxy_downloads: bool,
    api_limit: int,
    download_limit: int,
    max_file_size: int,
    max_repository_size: int,
    limit_local: bool,
    public_metrics: bool,
    mirrored: Mirrored | None,
    log_format: str | None,
    as_json: bool,
) -> None:
    """Serve the registry until interrupted.

    By itself it keeps everything in one folder. With a PostgreSQL database and a bucket, any number of replicas may
    serve the same registry.

    \b
    Example:
        skillhub-registry serve
        skillhub-registry serve --database postgresql://registry@db/registry --storage s3://models/registry
        skillhub-registry serve --mirror https://huggingface.co
    """
    try:
        from skillhub_registry.server import run_server
    except ModuleNotFoundError as error:
        raise _missing_extra("Serving needs", error) from error
    run_server(
        Place(data, database, storage),
        host,
        port,
        part_size=part_size * 1024 * 1024,
        links=not proxy_downloads,
        rates=Rates(api_limit, download_limit, limit_local),
        quotas=limits.Quotas(max_file_size * 10**6, max_repository_size * 10**6),
        public_metrics=public_metrics,
        mirrored=mirrored,
        log_format=log_format,
        as_json=as_json,
    )


@commands.group()
def user() -> None:
    """Users of the registry."""


@user.command("add")
@click.argument("name")
@making_database
def add_user(name: str, database: Database) -> None:
    """Make a user; `token create` then gives it a token."""
    with database.write() as connection:
        account = accounts.add_account(connection, name)
    click.echo(f"Made the user {account.name}.", err=True)


@user.command("password")
@click.argument("name")
@opening_database
def change_password(name: str, database: Database) -> None:
    """Give a user the password with which it signs in to the pages; asked for twice, or the first line of stdin.

    \b
    Example:
        skillhub-registry user password ann
        openssl rand -base64 18 | tee /dev/stderr | skillhub-registry user password ann
    """
    try:
        from skillhub_registry.passwords import set_password
    except ModuleNotFoundError as error:
        raise _missing_extra("Passwords need", error) from error
    with database.read() as connection:
        accounts.get_account(connection, name, "user")
    password = ask_password()
    with database.write() as connection:
        account = accounts.get_account(connection, name, "user")
        set_password(connection, account, password)
    click.echo(f"{account.name} has a new password; whoever was signed in has to sign in again.", err=True)


@user.command("shut-out")
@click.argument("name")
@opening_database
def shut_out_user(name: str, database: Database) -> None:
    """Let a user in no more: its tokens, password, browsers' sessions, memberships and access to gated repositories end.

    What it published stays, and its name. What it was already allowed to send may arrive for up to 12 hours, and becomes part of
    nothing; downloads under way go on. `token create` and `user password` let it in again.

    \b
    Example:
        skillhub-registry user shut-out ann
    """
    with database.write() as connection:
        account = accounts.get_account(connection, name, "user")
        revoked, roles = exclusion.shut_out(connection, account)
    ended = "1 token is" if revoked == 1 else f"{revoked} tokens are"
    click.echo(f"{account.name} is shut out: {ended} worthless now.", err=True)
    for organization, role in roles.items():
        click.echo(f"It was a member of {organization}, with the role {role}.", err=True)


def _missing_extra(what: str, error: ModuleNotFoundError) -> MissingExtraError:
    return MissingExtraError(
        f"{what} {error.name}, which is not installed.", hint='Run: pip install "skillhub-packs[registry]"'
    )


@user.command("list")
@opening_database
@json_option
def list_users(database: Database, as_json: bool) -> None:
    """List the users."""
    _list_accounts(database, "user", as_json)


@commands.group()
def token() -> None:
    """Tokens, with which users identify themselves (HF_TOKEN)."""


@token.command("create")
@click.argument("user_name", metavar="USER")
@click.option("--scope", type=click.Choice(["read", "write"]), default="write", show_default=True)
@click.option("--name", default="default", show_default=True, help="What it is for, to recognise it in lists.")
@click.option("--expires", type=read_duration, metavar="TIME", help="After how long it is worthless: 90d, 12h.")
@click.option(
    "--repository",
    "repositories",
    multiple=True,
    metavar="NAME",
    help="A repository (acme/pack) or a namespace (acme) that it is for, and no other; may be repeated.",
)
@opening_database
def create_token(
    user_name: str, scope: str, name: str, expires: int | None, repositories: tuple[str, ...], database: Database
) -> None:
    """Make a token and print it, this one time.

    A token that is limited to repositories or namespaces reads elsewhere what is public, and changes nothing there.

    \b
    Example:
        skillhub-registry token create ann --expires 90d --repository acme/math-pack
    """
    with database.write() as connection:
        secret = tokens.create_token(
            connection,
            accounts.get_account(connection, user_name, "user"),
            scope,
            name,
            expires_at=None if expires is None else int(time.time()) + expires,
            reach=find_reach(connection, repositories) if repositories else None,
        )
    click.echo(secret)


@token.command("list")
@click.argument("user_name", metavar="[USER]", required=False)
@opening_database
@json_option
def list_tokens(user_name: str | None, database: Database, as_json: bool) -> None:
    """List tokens, without their secrets: when they were made and expire, and what they are limited to."""
    with database.read() as connection:
        owner = accounts.get_account(connection, user_name, "user") if user_name else None
        listed = tokens.list_tokens(connection, owner)
    if as_json:
        click.echo(json.dumps([vars(token) for token in listed]))
        return
    for entry in listed:
        made, until = _format_day(entry.created_at), "never"
        if entry.expires_at is not None:
            until = "expired" if entry.expires_at <= time.time() else _format_day(entry.expires_at)
        limits = "" if entry.limits is None else f"  [{', '.join(entry.limits) or 'nothing'}]"
        click.echo(f"{entry.id:>4}  {entry.account:<16} {entry.scope:<5}  {made}  {until:<10}  {entry.name}{limits}")


def _format_day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


@token.command("revoke")
@click.argument("number", type=click.IntRange(0, 2**62))
@opening_database
def revoke_token(number: int, database: Database) -> None:
    """Make a token worthless, by its number in `token list`."""
    with database.write() as connection:
        tokens.revoke_token(connection, number)
    click.echo(f"Revoked token {number}.", err=True)


@commands.group()
def org() -> None:
    """Organisations: namespaces that several users share, each with a role."""


@org.command("add")
@click.argument("name")
@click.option("--member", "members", multiple=True, metavar="USER", help="A first admin; may be repeated.")
@making_database
def add_organization(name: str, members: tuple[str, ...], database: Database) -> None:
    """Make an organisation."""
    with database.write() as connection:
        organization = accounts.add_account(connection, name, "organization")
        for member in members:
            accounts.add_member(connection, organization, accounts.get_account(connection, member, "user"), "admin")
    click.echo(f"Made the organisation {organization.name}.", err=True)


@org.command("list")
@opening_database
@json_option
def list_organizations(database: Database, as_json: bool) -> None:
    """List the organisations and their members."""
    _list_accounts(database, "organization", as_json)


@org.command("join")
@click.argument("organization")
@click.argument("user_name", metavar="USER")
@click.option(
    "--role", type=click.Choice(accounts.ROLES), default="write", show_default=True, help="What the member may do."
)
@opening_database
def join_organization(organization: str, user_name: str, role: str, database: Database) -> None:
    """Make a user a member, or give a member another role.

    read: sees private repositories. contributor: makes repositories, and changes those. write: changes all. admin:
    deletes and moves them and changes their settings as well.
    """
    with database.write() as connection:
        group = accounts.get_account(connection, organization, "organization")
        accounts.add_member(connection, group, accounts.get_account(connection, user_name, "user"), role)
    click.echo(f"{user_name} is a member of {group.name}: {role}.", err=True)


@org.command("leave")
@click.argument("organization")
@click.argument("user_name", metavar="USER")
@opening_database
def leave_organization(organization: str, user_name: str, database: Database) -> None:
    """End a user's membership."""
    with database.write() as connection:
        group = accounts.get_account(connection, organization, "organization")
        accounts.remove_member(connection, group, accounts.get_account(connection, user_name, "user"))
    click.echo(f"{user_name} is no member of {group.name}.", err=True)


def _list_accounts(database: Database, kind: str, as_json: bool) -> None:
    with database.read() as connection:
        listed = [
            (account.name, accounts.list_members(connection, account))
            for account in accounts.list_accounts(connection, kind)
        ]
    if as_json:
        click.echo(json.dumps([{"name": name, "members": list(roles), "roles": roles} for name, roles in listed]))
        return
    for name, roles in listed:
        members = ", ".join(f"{member} ({role})" for member, role in roles.items())
        click.echo(f"{name}  {members}".rstrip())


commands.add_command(check)
commands.add_command(collect)
commands.add_command(audit)
commands.add_command(mirror)
