"""``skillhub run``: using packs with a model in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from skillhub.cli import console, options
from skillhub.errors import UsageError


@click.command("run")
@click.argument("prompt", required=False)
@click.option("--base", metavar="PATH|REPO", required=True, help="The base model.")
@click.option("--pack", "packs", multiple=True, metavar="PACK[@WEIGHT]", help="A pack; may be repeated.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1, 1_000_000),
    default=128,
    show_default=True,
    help="Where an answer is ended at the latest.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads for torch; OMP_NUM_THREADS when not given.")
@options.environment_option
@console.output_options
def run_command(
    prompt: str | None,
    base: str,
    packs: tuple[str, ...],
    max_new_tokens: int,
    threads: int | None,
    environment: Path | None,
    as_json: bool,
) -> None:
    """Answer PROMPT with the base model and packs grafted onto it; without PROMPT, talk to it.

    Each --pack is an installed name or a folder (./math-pack), with a weight after '@' where it is not 1: acme/math-pack@0.5.
    PEFT adapters will do as well, installed (peft:acme/lora) or as a folder.

    \b
    Example:
      skillhub run --base ./SmolLM2-135M-Instruct --pack acme/math-pack "What is 12 + 30?"
    """
    if prompt is None and as_json:
        raise UsageError("--json needs a prompt.", hint="Give the prompt as the last argument.")
    if prompt is not None and not prompt.strip():
        raise UsageError("The prompt is empty.", hint="Leave it out to talk to the model.")
    answer = _load(base, packs, environment, max_new_tokens, threads)
    if prompt is not None:
        text = answer(prompt)
        if as_json:
            console.emit_json({"prompt": prompt, "answer": text, "packs": list(packs)})
        else:
            click.echo(text)
        return
    console.say("Type a prompt; an empty line ends.")
    while line := _ask():
        click.echo(answer(line))


def _ask() -> str:
    """Return the next line; empty at the end of the input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    with suppress(EOFError, ImportError):
        import readline  # noqa: F401 - gives input() a history and editing keys

        return input("> ").encode(errors="replace").decode(errors="replace").strip()
    return ""


def _load(
    base: str, packs: tuple[str, ...], environment: Path | None, max_new_tokens: int, threads: int | None
) -> Callable[[str], str]:
    """Load and graft; return a function from prompt to answer."""
    from skillhub.compose.generation import load_model, respond
    from skillhub.compose.grafts import graft

    console.quiet_transformers()
    model, tokenizer = load_model(base, threads=threads)
    if packs:
        chosen = options.chosen_environment(environment)
        names, weights = zip(*map(options.split_weight, packs), strict=True)
        with console.progress("tensors") as progress:
            graft(model, list(names), weights=list(weights), environment=chosen, progress=progress, notice=console.say)
    return lambda prompt: respond(model, tokenizer, prompt, max_new_tokens=max_new_tokens)
