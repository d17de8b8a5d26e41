"""``skillhub fuse``: packs, adapters and fine-tuned checkpoints into a base model's checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skillhub.cli import console, options
from skillhub.cli.amounts import choose_amounts, read_options, read_size
from skillhub.cli.measuring import measure
from skillhub.cli.mergefiles import fuse_config
from skillhub.errors import SkillhubError, UsageError
from skillhub.files import new_folder

if TYPE_CHECKING:
    from skillhub.compose.plans import FusionPlan

DTYPES = ("bfloat16", "float16", "float32")


@click.command("fuse")
@click.argument("config", metavar="[FILE.yml]", required=False, type=click.Path(path_type=Path))
@click.option("--base", metavar="PATH|REPO", help="The base model.")
@click.option("--pack", "packs", multiple=True, metavar="PACK[@WEIGHT]", help="A pack; may be repeated.")
@click.option("--output", "-o", "out", type=click.Path(path_type=Path), help="Folder of the checkpoint.")
@click.option("--method", default="linear", show_default=True, help="How several packs are merged.")
@click.option(
    "--density",
    "densities",
    type=click.FloatRange(0, 1, min_open=True),
    multiple=True,
    help="Share of each delta that a trimming method keeps: once for all packs, or once for each.",
)
@click.option(
    "--option", "method_options", multiple=True, metavar="NAME=VALUE", help="Something else to tell the method."
)
@click.option(
    "--weights",
    "amounts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML or JSON with each pack's weight and density, by patterns of module names.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of methods that drop elements at random.")
@click.option(
    "--rounding",
    type=click.Choice(["auto", "nearest", "stochastic"]),
    default="auto",
    show_default=True,
    help="How sums become the dtype of the checkpoint.",
)
@click.option("--dtype", type=click.Choice(DTYPES), help="Dtype of the checkpoint; the base's when not given.")
@click.option(
    "--tokenizer",
    default="auto",
    show_default=True,
    metavar="base|PATH|REPO",
    help="Whose tokenizer and chat template to take: the base's, or another checkpoint's.",
)
@click.option(
    "--shard-size",
    default="5GB",
    show_default=True,
    callback=options.read_by(read_size),
    help="Largest file of weights.",
)
@click.option("--device", default="auto", show_default=True, help="Where to merge: cpu, cuda.")
@click.option(
    "--verify",
    type=click.Choice(["files", "full"]),
    default="files",
    show_default=True,
    help="What of a pack to check: its files' digests, or each decoded tensor's as well.",
)
@click.option(
    "--plan", "only_plan", is_flag=True, help="Say what would be read, written and needed, and what would fail."
)
@click.option(
    "--interference",
    "picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Measure how much the packs get into each other's way, and draw it.",
)
@options.environment_option
@console.output_options
def fuse_command(
    config: Path | None,
    base: str | None,
    packs: tuple[str, ...],
    out: Path | None,
    method: str,
    densities: tuple[float, ...],
    method_options: tuple[str, ...],
    amounts: Path | None,
    seed: int,
    rounding: str,
    dtype: str | None,
    tokenizer: str,
    shard_size: int,
    device: str,
    verify: str,
    only_plan: bool,
    picture: Path | None,
    environment: Path | None,
    as_json: bool,
) -> None:
    """Write a checkpoint of the base model with packs fused into its weights.

    Each --pack is an installed name or a folder (./math-pack), with a weight after '@' where it is not 1: acme/math-pack@0.5.
    PEFT adapters will do as well, installed (peft:acme/lora) or as a folder, and so will whole fine-tuned checkpoints, as a folder
    or a repository (checkpoint:acme/tuned-model): what they changed of the base is merged. Everything is read and written in
    pieces, so the model may be far larger than memory. With --plan or --interference nothing is written without -o.

    Several processes share the work under torchrun: torchrun --nproc-per-node 4 -m skillhub fuse … --shard-size 1GB

    A file that mergekit would run takes the place of all that: whole models merged, cut and stacked, in every way that it knows.

    \b
    Example:
      skillhub fuse --base ./SmolLM2-135M-Instruct --pack acme/math-pack --pack acme/code-pack@0.7 -o ./fused
      skillhub fuse merge.yml -o ./merged
    """
    shared = {
        "seed": seed,
        "rounding": rounding,
        "environment": options.chosen_environment(environment),
        "shard_bytes": shard_size,
    }
    if config is not None:
        fuse_config(config, out, {**shared, "device": device}, only_plan=only_plan, as_json=as_json)
        return
    if base is None or not packs:
        raise UsageError(
            "A base model and packs, or a configuration file, are needed.",
            hint="Write --base MODEL --pack PACK, or the file's path.",
        )
    if out is None and not only_plan and picture is None:
        raise UsageError("Nothing says where the checkpoint is to be written.", hint="Name a new folder with -o.")
    names, weights = zip(*map(options.split_weight, packs), strict=True)
    told = {"method": method, "options": read_options(method_options), "dtype": dtype}
    request = {**shared, **told, **choose_amounts(names, weights, densities, amounts)}
    if only_plan:
        if picture is not None:
            raise UsageError("--plan reads no weights, and --interference does.", hint="Leave one of them out.")
        _show_plan(base, names, out, request, {"tokenizer": tokenizer, "device": device}, as_json)
        return
    measured = measure(base, names, picture, request, as_json) if picture else {}
    if out is not None:
        _fuse(base, names, out, {**request, "tokenizer": tokenizer, "device": device, "verify": verify})
    result = {"checkpoint": str(out) if out else None, "packs": list(names), "weights": request["weights"]}
    if not console.is_leader():
        return
    if as_json:
        console.emit_json({**result, "method": method, **measured})
    elif out is not None:
        click.echo(f"Wrote {out}: {base} with {', '.join(packs)}.")


def _fuse(base: str, names: Sequence[str], out: Path, request: dict[str, Any]) -> None:
    from skillhub.compose.fusion import fuse

    with console.progress("tensors") as progress:
        fuse(base, list(names), out, progress=progress, notice=console.say, **request)


def _show_plan(
    base: str, names: Sequence[str], out: Path | None, request: dict[str, Any], writing: dict[str, str], as_json: bool
) -> None:
    """Print the plan; fail with its first problem."""
    from dataclasses import replace

    from skillhub.compose.plans import plan_fusion

    plan = plan_fusion(base, list(names), out or ".", **request)
    plan = replace(plan, problems=(*plan.problems, *_writing_problems(plan, out, **writing)))
    if as_json:
        console.emit_json(_plan_json(plan, names))
    else:
        _print_plan(plan, base)
    if plan.problems:
        click.get_current_context().exit(plan.problems[0].exit_code)


def _writing_problems(plan: FusionPlan, out: Path | None, *, tokenizer: str, device: str) -> Iterator[SkillhubError]:
    """Yield what is wrong with where and how the checkpoint is to be written."""
    from skillhub.compose.companions import choose_tokenizer
    from skillhub.devices import choose_device

    checks: list[Callable[[], object]] = [
        lambda: None if out is None else new_folder(out),
        lambda: choose_device(device),
        lambda: choose_tokenizer(tokenizer, plan.checkpoint, plan.contributions, console.say),
    ]
    for check in checks:
        try:
            check()
        except SkillhubError as error:
            yield error


def _plan_json(plan: FusionPlan, names: Sequence[str]) -> dict[str, Any]:
    return {
        "packs": list(names),
        "method": plan.recipe.method,
        "base_fingerprint": plan.fingerprint,
        "base_verified": plan.is_verified,
        "tensors": sum(len(shard.tensors) for shard in plan.shards),
        "merged": sum(tensor.source is not None for shard in plan.shards for tensor in shard.tensors),
        "files": [{"name": shard.file, "size": shard.nbytes} for shard in plan.shards],
        "read_bytes": plan.read_bytes,
        "write_bytes": plan.write_bytes,
        "free_bytes": plan.free_bytes,
        "memory_bytes": plan.memory_bytes,
        "passes": plan.passes,
        "problems": [error.to_json() for error in plan.problems],
    }


def _print_plan(plan: FusionPlan, base: str) -> None:
    rows = [
        (str(one.item.pack), f"{one.item.weight:g}", str(len(one.names)), console.size_text(_delta_bytes(one)))
        for one in plan.contributions
    ]
    console.table(("pack", "weight", "tensors", "bytes"), rows, right=(1, 2, 3))
    files = f"{len(plan.shards)} file{'s' if len(plan.shards) != 1 else ''}"
    verified = "the packs' base by its weights" if plan.is_verified else "not hashed yet; fusing will check its weights"
    facts = [
        ("base", base),
        *([("", verified)] if plan.recipe.skill_packs else []),
        ("method", plan.recipe.method + (f", up to {plan.passes} passes over the deltas" if plan.passes > 1 else "")),
        ("read", console.size_text(plan.read_bytes)),
        ("write", f"{console.size_text(plan.write_bytes)} in {files}; {console.size_text(plan.free_bytes)} are free"),
        ("memory", f"about {console.size_text(plan.memory_bytes)}"),
    ]
    for name, fact in facts if not plan.problems else facts[:1]:
        click.echo(f"{name:8} {fact}")
    for error in plan.problems:
        click.echo(f"{click.style('would fail', fg='red')}: {error.message}")
        if error.hint:
            click.echo(f"  {click.style('hint', fg='cyan')}: {error.hint}")


def _delta_bytes(one: Any) -> int:
    return sum(one.delta.entry(name).bytes for name in one.names)
