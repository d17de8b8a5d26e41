"""The command line. Each command's module is imported only when that command runs, so ``--help`` answers at once."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from skillhub import __version__
from skillhub.cli import console
from skillhub.errors import (
    INTERRUPT_EXIT_CODE,
    TERMINATED_EXIT_CODE,
    DiskError,
    NotFoundError,
    SkillhubError,
    missing_extra,
)
from skillhub.files import disk_errors
from skillhub.redaction import hide

GROUPS = {
    "Using packs": {
        "search": ("discovering", "Find packs on a registry."),
        "show": ("showing", "Show what a pack says about itself."),
        "install": ("installing", "Install packs into an environment."),
        "uninstall": ("installing", "Remove installed packs."),
        "upgrade": ("installing", "Move packs to newer releases."),
        "outdated": ("checking", "Show locked packs of which there is something newer."),
        "list": ("inspecting", "List the installed packs."),
        "tree": ("graphing", "Show what the locked packs require, as a tree."),
        "why": ("graphing", "Show what asks for a pack."),
        "check": ("checking", "Check that what is asked for, locked and installed fits together."),
        "verify": ("checking", "Check installed packs byte for byte."),
        "run": ("composing", "Try a model with packs grafted onto it."),
        "route": ("routing", "Show which of several packs an input would be routed to."),
        "fuse": ("fusing", "Write a checkpoint with packs fused into it."),
        "export": ("exporting", "Write packs as LoRA adapters, for peft and vLLM."),
        "base": ("bases", "Fingerprint base models, and choose that of an environment."),
    },
    "Projects": {
        "init": ("locking", "Make a folder a project, with a skillhub.toml of its own."),
        "lock": ("locking", "Bring the lock up to date; install nothing."),
        "sync": ("locking", "Install exactly what the lock says."),
        "freeze": ("graphing", "Print the locked packs as requirements."),
        "download": ("discovering", "Fetch packs as folders, without installing them."),
        "vendor": ("discovering", "Write a folder to install the locked packs from without a network."),
    },
    "Making packs": {
        "new": ("authoring", "Write a skillpack.toml for a new pack, with every key explained."),
        "pack": ("packing", "Build a pack from a fine-tuned checkpoint and its base."),
        "diff": ("diffing", "Show how two checkpoints differ, and how large a pack would be."),
        "evaluate": ("evaluating", "Measure base, fine-tune and pack, and note it in the pack's manifest."),
        "publish": ("publishing", "Publish a pack as a release on a registry."),
        "yank": ("publishing", "Withdraw a release, so that nothing chooses it any more."),
        "unyank": ("publishing", "Let a yanked release be chosen again."),
        "deprecate": ("publishing", "Say that a pack should not be used any more."),
        "key": ("authoring", "Make or show the key that releases are signed with."),
    },
    "This machine": {
        "login": ("accounts", "Save a token for a registry."),
        "logout": ("accounts", "Remove the saved token of a registry."),
        "whoami": ("accounts", "Show whose token is sent to a registry."),
        "config": ("configuring", "Show and change settings, and name registries."),
        "trust": ("trusting", "Show what is remembered of a pack, or accept that it has changed."),
        "cache": ("caching", "Look at the store of downloaded files, and make room."),
        "doctor": ("doctoring", "Check the installation, and say what to do about problems."),
        "completion": ("completion", "Print the script for completion in a shell."),
    },
}
"""What people want to do → command → (module in this package, help line).

The function in the module is named ``<command>_command``.
"""

COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}


class LazyGroup(click.Group):
    """A group that knows its commands' names and help lines without importing them."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import the module of a command and return the command."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"skillhub.cli.{COMMANDS[name][0]}")
        command = getattr(module, f"{name}_command")
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Complete the commands' names without importing them."""
        if incomplete.startswith("-"):
            return super().shell_complete(context, incomplete)
        return [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a table of commands for each thing that people want to do."""
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in group.items()])

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown one, name those that look alike."""
        import difflib

        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not context.resilient_parsing:
            near = difflib.get_close_matches(name, COMMANDS, n=2)
            hint = f" Did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
            raise click.UsageError(f"There is no command {name!r}.{hint}", context)
        return super().resolve_command(context, args)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="skillhub", message="%(prog)s %(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    """The package manager for SkillPacks: compressed fine-tunes that graft onto their base model.

    \b
    Example:
      skillhub install acme/math-pack --base ./SmolLM2-135M-Instruct
      skillhub run --base ./SmolLM2-135M-Instruct --pack acme/math-pack "What is 12 + 30?"
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of the outcome (the table is in README)."""
    signal.signal(signal.SIGTERM, _terminate)
    _fill_in_streams()
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # retries are ours to report, in one sentence at the end
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # no more than versions in the User-Agent
    arguments = sys.argv[1:] if arguments is None else arguments
    _hide_tokens(arguments)
    console.guard_logs()
    sys.exit(_run(arguments))


def _fill_in_streams() -> None:
    """Let a stream that the caller has closed (``2>&-``) lead nowhere.

    Else printing would fail, and the next file to be opened would get the stream's number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - for as long as the process lives


def _hide_tokens(arguments: list[str]) -> None:
    """Keep the values of ``--token`` out of all that is printed, complaints about the arguments included."""
    for place, argument in enumerate(arguments):
        if argument == "--token" and place + 1 < len(arguments):
            hide(arguments[place + 1])
        elif argument.startswith("--token="):
            hide(argument.removeprefix("--token="))


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        code = commands.main(arguments, prog_name="skillhub", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        console.report_usage(error, as_json=as_json)
        return 2
    except SkillhubError as error:
        console.report(error, as_json=as_json, with_cause="--verbose" in arguments)
        return error.exit_code
    except ModuleNotFoundError as error:
        return _report_missing(error, as_json=as_json, with_cause="--verbose" in arguments)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        return INTERRUPT_EXIT_CODE
    except SystemExit as stopped:
        # Click ends with 1 when the reader of our output went away; nothing is wrong then, as for any command in a pipe.
        return 0 if stopped.code == 1 else int(stopped.code or 0)
    except OSError as error:
        return _report_disk(error, as_json=as_json, with_cause="--verbose" in arguments)
    except Exception as error:
        console.report_internal(error, as_json=as_json, with_cause="--verbose" in arguments)
        return SkillhubError.exit_code


def _report_missing(error: ModuleNotFoundError, *, as_json: bool, with_cause: bool) -> int:
    wanted = missing_extra(error)
    if isinstance(wanted, SkillhubError):
        console.report(wanted, as_json=as_json, with_cause=with_cause)
        return wanted.exit_code
    console.report_internal(error, as_json=as_json, with_cause=with_cause)
    return SkillhubError.exit_code


def _report_disk(error: OSError, *, as_json: bool, with_cause: bool) -> int:
    """Report a file that could not be used, wherever that happened."""
    try:
        with disk_errors(Path(error.filename or ".")):
            raise error
    except DiskError as wanted:
        console.report(wanted, as_json=as_json, with_cause=with_cause)
        return wanted.exit_code
    except OSError:
        if not _is_somewhere():
            lost = NotFoundError("The current folder was removed.", hint="Go to one that exists: cd ~.")
            console.report(lost, as_json=as_json, with_cause=with_cause)
            return lost.exit_code
        console.report_internal(error, as_json=as_json, with_cause=with_cause)
        return SkillhubError.exit_code


def _is_somewhere() -> bool:
    """Say whether the current folder exists."""
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED_EXIT_CODE)  # unwinds through every `finally`, so nothing half-written stays
