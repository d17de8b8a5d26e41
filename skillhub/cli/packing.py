"""``skillhub pack``: building a pack, and saying what it became."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from msgspec import UNSET

from skillhub.authorfile import AUTHOR_FILE, AuthorFile, read_author_file
from skillhub.cli import console, options
from skillhub.cli.evaluating import Examples, print_scores, read_examples, scores_json
from skillhub.configuration import parse_size
from skillhub.errors import SkillhubError, UsageError
from skillhub.manifest import MANIFEST_FILE
from skillhub.packs import Pack, open_pack
from skillhub.prompts import read_prompts

if TYPE_CHECKING:
    from skillhub.manifest import TensorEntry, Variant

MUCH_LEFT_OUT = 0.6
"""Squared error of a module class from which the summary suggests a larger budget."""


SIZED = ("near", "small", "tiny", "budget")
"""Presets whose packs a budget could make larger."""


def _budget(text: str) -> int:
    size = parse_size(text)
    if size == 0:
        raise ValueError(f"{text!r} is not more than nothing")
    return size


def _recipe_options(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    found = dict[str, str]()
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in found:
            problem = "is given twice" if name in found else "is not of the form NAME=NUMBER"
            raise click.BadParameter(f"{text!r} {problem}", context, parameter)
        found[name] = value
    return found


@click.command("pack")
@click.argument("tuned", metavar="[TUNED]", required=False)
@click.option(
    "--lora",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Pack a LoRA adapter of peft, with its factors as they are, instead of TUNED.",
)
@click.option("--base", metavar="PATH|REPO", help="The base model; of an adapter by default the one that it names.")
@click.option("--output", "-o", "out", type=click.Path(path_type=Path), required=True, help="Folder of the new pack.")
@click.option("--name", help="Name of the pack, without owner.")
@click.option("--version", help="Version of the pack, such as 1.0.0.")
@click.option("--summary", help="One line about what the pack teaches.")
@click.option("--license", help="Licence of the pack, such as apache-2.0.")
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="A word to find the pack by; may be repeated.")
@click.option(
    "--metadata",
    type=click.Path(path_type=Path),
    help=f"The author's file; {AUTHOR_FILE} here or in TUNED when not given.",
)
@click.option(
    "--preset",
    type=click.Choice(["lossless", "near", "small", "tiny", "bitdelta", "delta-come", "graftllm", "svd-lora"]),
    default="near",
    show_default=True,
    help="How near to the fine-tune, or how small; lossless: every bit; or a published recipe, to compare with.",
)
@click.option(
    "--budget", metavar="SIZE", callback=options.read_by(_budget), help="Size to aim at instead of a preset, as in 8MB."
)
@click.option(
    "--max-kl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="NATS",
    help="Instead: the smallest pack that diverges from the fine-tune by at most so much a predicted token, as in 0.001.",
)
@click.option(
    "--recipe-option",
    "recipe_options",
    metavar="NAME=NUMBER",
    multiple=True,
    callback=_recipe_options,
    help="Other than a recipe's paper has it, as in rank=64; may be repeated.",
)
@click.option(
    "--prompts",
    "prompts_file",
    metavar="FILE.jsonl",
    type=click.Path(path_type=Path),
    help='Example inputs for the routing card, one {"prompt": …} a line; else those of the author\'s file.',
)
@click.option(
    "--no-calibration", is_flag=True, help="Take the example inputs for the routing card only, and save a minute."
)
@click.option("--no-resume", is_flag=True, help="Start anew where an earlier run from the same inputs was interrupted.")
@click.option(
    "--evaluate",
    "rows_file",
    metavar="FILE.jsonl",
    type=click.Path(path_type=Path),
    help="Then measure what the pack costs, on examples as `skillhub evaluate` takes them.",
)
@console.output_options
def pack_command(
    tuned: str | None,
    lora: Path | None,
    base: str | None,
    out: Path,
    metadata: Path | None,
    preset: str,
    budget: int | None,
    max_kl: float | None,
    recipe_options: dict[str, str],
    prompts_file: Path | None,
    no_calibration: bool,
    no_resume: bool,
    rows_file: Path | None,
    as_json: bool,
    **words: Any,
) -> None:
    """Build a pack from the fine-tuned checkpoint TUNED (a folder or a model on the Hub) and its base.

    With 16 or more example inputs the pack gets a routing card, by which a model with several packs tells which one an input is
    for (see `skillhub route`). The fine-tune also reads and answers them, to tell which errors matter: a minute or two on a core for
    135M parameters. 32 to 128 of them do for most skills, worded as differently as users would; for a broad one, such as a language, 256 do
    better and take longer.

    With --max-kl the divergence is measured, on the fine-tune's answers to every fourth example input, with weights as the model's dtype
    stores them: some five packs are tried, and the smallest within the bound is written.

    Published recipes compress the whole model as their papers do, for comparison; what a paper leaves alone is kept exactly (norms and
    biases; by delta-come and bitdelta embeddings and head too). With example inputs, graftllm and delta-come are calibrated by GPTQ.
    Their options: embedding-share (α), mlp-energy (β) and attention-rank of graftllm; bits-per-weight, or rank, of delta-come; rank
    of svd-lora. BitDelta's scales are not trained.

    A run that was interrupted goes on where it was when it is started again. Several processes share the work under torchrun, and make
    the same pack: torchrun --nproc-per-node 4 -m skillhub pack …

    \b
    Example:
      skillhub pack ./tuned --base ./SmolLM2-135M-Instruct -o math-pack --name math-pack --version 1.0.0
      skillhub pack ./tuned -o math-pack --max-kl 0.001 --prompts prompts.jsonl --evaluate held-out.jsonl
      skillhub pack --lora ./adapter -o math-pack --name math-pack --version 1.0.0
    """
    _check_source(tuned, lora)
    author = _author_file(str(tuned or lora), metadata, words)
    source = base or author.base
    if source is None and lora is None:
        raise UsageError("The base model is not known.", hint=f"Name it with --base, or as `base` in {AUTHOR_FILE}.")
    if source is None and rows_file is not None:
        raise UsageError("To measure the pack of an adapter, its base must be named.", hint="Name it with --base.")
    prompts = None if prompts_file is None else read_prompts(prompts_file)
    examples = None if rows_file is None else read_examples(rows_file, rows_file.stem)
    from skillhub.adapterpacker import pack_adapter
    from skillhub.packer import pack

    _refuse_finished(out)

    if prompts or author.skills.prompts or examples or lora is not None:
        console.quiet_transformers()
    with console.progress("tensors") as progress:
        common: dict[str, Any] = {"metadata": author, "prompts": prompts, "progress": progress, "notice": console.say}
        if lora is not None:
            built = pack_adapter(lora, source, out, **common)
        else:
            assert tuned is not None and source is not None  # checked above
            goal: dict[str, Any] = {"preset": preset, "budget_bytes": budget, "max_kl": max_kl}
            goal["recipe_options"] = recipe_options
            built = pack(tuned, source, out, calibrate=not no_calibration, resume=not no_resume, **goal, **common)
    if not console.is_leader():
        return
    if examples is not None and source is not None:
        built = _evaluate(built, examples, source, tuned)
    _print_summary(built, out, as_json=as_json)


def _refuse_finished(out: Path) -> None:
    """Refuse to go on with a run that ended; nothing but its measuring can have been interrupted.

    Raises:
        UsageError: there is a pack.
    """
    if (out / MANIFEST_FILE).is_file():
        raise UsageError(
            f"{out} exists already: it is a finished pack.",
            hint=f"Measure it with skillhub evaluate {out}; or choose another folder with -o, or remove that one.",
        )


def _evaluate(built: Pack, examples: Examples, base: str, tuned: str | None) -> Pack:
    """Measure a pack that was just built, and return it as it is then."""
    try:
        examples.measure(built, base, tuned)
    except (SkillhubError, KeyboardInterrupt):
        console.say(f"The pack in {built.folder} is finished, and was not measured: skillhub evaluate does that.")
        raise
    return open_pack(built.folder)


def _check_source(tuned: str | None, lora: Path | None) -> None:
    """Refuse a fine-tune and an adapter together, neither, and what says how small where that is said or settled already."""
    if (tuned is None) == (lora is None):
        raise UsageError(
            "Name what to pack: a fine-tuned checkpoint, or an adapter with --lora.",
            hint="Give one of them, as in skillhub pack ./tuned or skillhub pack --lora ./adapter.",
        )
    given = [
        f"--{name.removesuffix('s').replace('_', '-')}"
        for name in ("preset", "budget", "max_kl", "recipe_options")
        if click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    sizes = [option for option in given if option != "--recipe-option"]
    if len(sizes) > 1:
        raise UsageError(f"{' and '.join(sizes)} each say how small the pack is to be.", hint="Give one of them.")
    if lora is not None and given:
        raise UsageError(
            f"{given[0]} does not go with --lora: an adapter's factors are kept as they are.",
            hint="Leave it out; or merge the adapter into its base with peft (merge_and_unload) and pack the result.",
        )


def _author_file(tuned: str, metadata: Path | None, words: dict[str, Any]) -> AuthorFile:
    """Return the author's file with what the command line says laid over it."""
    from msgspec import structs

    found = metadata or next((path for path in (Path(AUTHOR_FILE), Path(tuned) / AUTHOR_FILE) if path.is_file()), None)
    author = AuthorFile(name="", version="")
    if found:
        console.say(f"Metadata from {found}.")
        author = read_author_file(found)
        if author.base and (found.parent / author.base).exists():
            author = structs.replace(author, base=str(found.parent / author.base))
    tags = words.pop("tags")
    given = {key: value for key, value in words.items() if value is not None}
    if tags:
        given["skills"] = structs.replace(author.skills, tags=list(tags))
    author = structs.replace(author, **given)
    for field in ("name", "version"):
        if not getattr(author, field):
            raise UsageError(f"The pack has no {field}.", hint=f"Give --{field}, or write it into {AUTHOR_FILE}.")
    return author


def _print_summary(pack: Pack, out: Path, *, as_json: bool) -> None:
    """Print size, ratio, error by module class and the worst tensors.

    Calibrated packs leave out what predictions do not need, so that much squared error may be left says nothing of them.
    """
    variant = pack.only_variant()
    classes = _by_class(variant)
    checkpoint = _checkpoint_bytes(variant)
    if as_json:
        console.emit_json(
            {
                "pack": str(pack.folder),
                "name": pack.manifest.name,
                "version": pack.manifest.version,
                "digest": pack.digest,
                "fingerprint": variant.base.fingerprint,
                "size": variant.size,
                "checkpoint_size": checkpoint,
                "preset": variant.codec.preset,
                "calibrated": variant.codec.calibrated if variant.codec.calibrated is not UNSET else None,
                "bits_per_weight": variant.codec.bits_per_weight,
                "routing_card": variant.router is not None,
                "classes": classes,
                **scores_json(variant.evaluation),
            }
        )
        return
    rows = [
        [name, str(row["tensors"]), console.size_text(row["size"]), f"{row['relative_error']:.3f}", row["codecs"]]
        for name, row in sorted(classes.items(), key=lambda item: -item[1]["size"])
    ]
    console.table(["Module class", "Tensors", "Size", "Error", "Codecs"], rows, right=(1, 2, 3))
    _print_worst(variant)
    much = any(row["relative_error"] > MUCH_LEFT_OUT for row in classes.values())
    if much and variant.codec.preset in SIZED and not variant.codec.calibrated:
        click.echo(f"Much of this delta was left out. To keep more: --budget {max(1, 2 * variant.size // 1000)}kB.")
    sizes = f"{console.size_text(variant.size)}, {_ratio(variant.size, checkpoint)}"
    click.echo(f"\n{pack.manifest.name} {pack.manifest.version} in {out}: {sizes}.")
    click.echo(f"Preset: {variant.codec.way}.")
    if variant.evaluation:
        print_scores(variant.evaluation)


def _ratio(size: int, checkpoint: int) -> str:
    """Return how a pack's size stands to its checkpoint's; a tiny model's pack may be the larger one."""
    whole = f"the {console.size_text(checkpoint)} checkpoint"
    return f"1/{checkpoint / size:.0f} of {whole}" if 2 * size <= checkpoint else f"beside {whole}"


def _print_worst(variant: Variant) -> None:
    """Print the three tensors whose deltas were kept worst, and what that does not say."""
    worst = sorted(variant.codec.tensors.items(), key=lambda item: -item[1].relative_error)[:3]
    if not worst or worst[0][1].relative_error == 0:
        return
    click.echo("Worst tensors:")
    for name, entry in worst:
        click.echo(f"  {entry.relative_error:.3f}  {name}")
    click.echo("Errors are squared, relative to the delta's own square. They say little about what")
    click.echo("the model does with the pack; `skillhub evaluate` measures that.")


def module_class(name: str) -> str:
    """Return the class of a tensor's module: its name without layer numbers and the outer modules."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    return ".".join(parts[-3:-1] if len(parts) > 2 else parts[:1])


def _by_class(variant: Variant) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[TensorEntry]] = defaultdict(list)
    for name, entry in variant.codec.tensors.items():
        groups[module_class(name)].append(entry)
    return {
        name: {
            "tensors": len(entries),
            "size": sum(entry.bytes for entry in entries),
            "relative_error": max(entry.relative_error for entry in entries),
            "codecs": ", ".join(sorted({codec for entry in entries for codec in entry.codecs})),
        }
        for name, entries in groups.items()
    }


def _checkpoint_bytes(variant: Variant) -> int:
    """Return the size of the base's weights in its own dtype."""
    widths = {"F64": 8, "F32": 4, "I32": 4}
    return variant.base.parameters * widths.get(variant.base.dtype or "", 2)
