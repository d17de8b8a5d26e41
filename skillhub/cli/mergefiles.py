"""``skillhub fuse merge.yml``: running a merge configuration of mergekit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from skillhub.cli import console
from skillhub.errors import UsageError
from skillhub.files import new_folder

if TYPE_CHECKING:
    from skillhub.compose.mergeplans import MergePlan

TAKEN = frozenset(
    (
        "config",
        "out",
        "seed",
        "rounding",
        "shard_size",
        "device",
        "only_plan",
        "environment",
        "as_json",
        "quiet",
        "verbose",
        "no_color",
    )
)
"""Parameters of ``skillhub fuse`` that go with a file; what the others say, the file says itself."""


def fuse_config(config: Path, out: Path | None, request: Mapping[str, Any], *, only_plan: bool, as_json: bool) -> None:
    """Run a file, or say what it would do.

    Args:
        config: the file.
        out: the folder of the result.
        request: keyword arguments of :func:`skillhub.compose.mergefiles.fuse_file`.
        only_plan: write nothing.
        as_json: print JSON.

    Raises:
        UsageError: an option was given that the file decides, or no folder, or one that is not empty.
        SkillhubError: as :func:`skillhub.compose.mergefiles.fuse_file`.
    """
    if config.is_dir():
        raise UsageError(
            f"{config} is a folder, and not a merge configuration.", hint=f"Name packs and models so: --pack {config}."
        )
    _refuse_other_options()
    console.quiet_transformers()
    if only_plan:
        from skillhub.compose.mergeplans import plan_file

        if out is not None:
            new_folder(out)
        plans = plan_file(config, environment=request["environment"], notice=console.say)
        if as_json:
            console.emit_json({"configuration": str(config), "documents": [_plan_json(plan) for plan in plans]})
        else:
            _print_plans(plans)
        return
    if out is None:
        raise UsageError("Nothing says where the checkpoint is to be written.", hint="Name a new folder with -o.")
    from skillhub.compose.mergefiles import fuse_file

    with console.progress("tensors") as progress:
        folder = fuse_file(config, out, progress=progress, notice=console.say, **request)
    if not console.is_leader():
        return
    if as_json:
        written = sorted(str(path.parent) for path in folder.rglob("config.json"))
        console.emit_json({"checkpoint": str(out), "configuration": str(config), "checkpoints": written})
    else:
        click.echo(f"Wrote {out}: what {config} says.")


def _refuse_other_options() -> None:
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in TAKEN:
            raise UsageError(
                f"{parameter.opts[0]} does not go with a configuration file, which says that itself.",
                hint=f"Leave {parameter.opts[0]} out, or the file.",
            )


def _plan_json(plan: MergePlan) -> dict[str, Any]:
    document = plan.document
    return {
        "name": document.name,
        "method": document.method,
        "models": [str(model) for model in document.models],
        "tensors": len(plan.tensors) if plan.merge else None,
        "write_bytes": plan.write_bytes if plan.merge else None,
    }


def _print_plans(plans: list[MergePlan]) -> None:
    rows = [
        (
            plan.document.name or "-",
            plan.document.method,
            str(len(plan.document.models)),
            str(len(plan.tensors)) if plan.merge else "later",
            console.size_text(plan.write_bytes) if plan.merge else "later",
        )
        for plan in plans
    ]
    console.table(("result", "method", "models", "tensors", "bytes"), rows, right=(2, 3, 4))
    for plan in plans:
        click.echo(f"{plan.document.name or 'result'}: {', '.join(map(str, plan.document.models))}")
