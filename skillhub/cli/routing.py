"""``skillhub route``: which pack an input would get, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skillhub.cli import console, options
from skillhub.errors import UsageError
from skillhub.prompts import read_prompts, whole_text

if TYPE_CHECKING:
    from skillhub.routing.decisions import Decision

_BASE = "(base)"
_SHOWN = 40
"""Characters of a prompt in the table."""
_BATCH = 16


@click.command("route")
@click.argument("text", required=False)
@click.option("--base", metavar="PATH|REPO", required=True, help="The base model.")
@click.option("--pack", "packs", multiple=True, required=True, metavar="PACK", help="A pack; may be repeated.")
@click.option(
    "--file", "prompts_file", metavar="FILE.jsonl", type=click.Path(path_type=Path), help="Many inputs at once."
)
@click.option(
    "--template",
    type=click.Choice(["auto", "chat", "none"]),
    default="auto",
    show_default=True,
    help="Put inputs into the base's chat template, or take them as they are; auto: where it has one.",
)
@options.environment_option
@console.output_options
def route_command(
    text: str | None,
    base: str,
    packs: tuple[str, ...],
    prompts_file: Path | None,
    template: str,
    environment: Path | None,
    as_json: bool,
) -> None:
    """Show which of several packs TEXT would be routed to, with scores and thresholds; nothing is grafted or generated.

    Each --pack is an installed name or a folder (./math-pack). A score must exceed its pack's threshold; of several packs the one
    that exceeds it by most is chosen, and where none does, the base answers alone. --file reads {"prompt": …} from each line.

    \b
    Example:
      skillhub route --base ./SmolLM2-135M-Instruct --pack acme/math-pack --pack acme/code-pack "What is 12 + 30?"
    """
    if (text is None) == (prompts_file is None):
        raise UsageError("Give either a text or --file.", hint='For example: skillhub route … "What is 12 + 30?"')
    if text is not None and not text.strip():
        raise UsageError("The text is empty.", hint="Give what a user might write.")
    prompts = [whole_text(text, "The text")] if text is not None else read_prompts(prompts_file or Path())
    console.quiet_transformers()
    router, model, tokenizer = _router(base, packs, options.chosen_environment(environment))
    is_chat = template == "chat" or (template == "auto" and bool(getattr(tokenizer, "chat_template", None)))
    rows = [row for decision in _decide(router, model, tokenizer, prompts, is_chat) for row in _rows(decision)]
    names, thresholds = _thresholds(router)
    if as_json:
        _emit(base, router, is_chat, dict(zip(names, thresholds, strict=True)), prompts, rows)
    elif text is not None:
        (row,) = rows
        chosen = [
            [name, f"{row['scores'][name]:.3f}", _number(limit), _mark(row, name)]
            for name, limit in zip(names, thresholds, strict=True)
        ]
        console.table(
            ["Pack", "Score", "Threshold", "Chosen"], [*chosen, [_BASE, "", "", _mark(row, None)]], right=(1, 2)
        )
    else:
        _print_many(prompts, rows, dict(zip(names, thresholds, strict=True)))


def _router(base: str, sources: Sequence[str], environment: Any) -> tuple[Any, Any, Any]:
    """Return what decides, the base model and its tokenizer."""
    from skillhub.bases import locate_base
    from skillhub.checkpoints import open_checkpoint
    from skillhub.compose.packsources import find_pack
    from skillhub.fingerprint import fingerprint_checkpoint
    from skillhub.packdeltas import open_delta
    from skillhub.packs import Pack
    from skillhub.routing import find_router
    from skillhub.routing.basecards import load_reader

    folder = locate_base(base)
    fingerprint = fingerprint_checkpoint(folder).fingerprint
    packs = [find_pack(source, environment=environment, fingerprint=lambda: fingerprint) for source in sources]
    for source, pack in zip(sources, packs, strict=True):
        if not isinstance(pack, Pack):
            raise UsageError(f"{source} is not a pack.", hint="Routes are found between packs; leave adapters out.")
    checkpoint = open_checkpoint(folder)
    deltas = {str(pack.name): open_delta(pack, fingerprint, checkpoint) for pack in packs if isinstance(pack, Pack)}
    if len(deltas) < len(packs):
        raise UsageError("A pack is given twice.", hint="Name each pack once.")
    model, tokenizer = load_reader(folder)
    return find_router(deltas, model, tokenizer=tokenizer, notice=console.say), model, tokenizer


def _decide(router: Any, model: Any, tokenizer: Any, prompts: Sequence[str], is_chat: bool) -> Iterator[Decision]:
    from skillhub.routing.cardmaking import encode, prefill_of
    from skillhub.routing.contents import chat_text

    with console.progress("prompts") as progress:
        for begin in range(0, len(prompts), _BATCH):
            texts = prompts[begin : begin + _BATCH]
            rows = [encode(tokenizer, chat_text(tokenizer, one) if is_chat else one, is_chat=is_chat) for one in texts]
            yield router.route(prefill_of(model, rows))
            if progress:
                progress("prompts", begin + len(texts), len(prompts))


def _rows(decision: Decision) -> Iterator[dict[str, Any]]:
    """Yield for each row its scores by pack, and the name of its pack."""
    assert decision.scores is not None
    for label, scores in zip(decision.labels, decision.scores.tolist(), strict=True):
        yield {"scores": dict(zip(decision.packs, scores, strict=True)), "choice": label}


def _thresholds(router: Any) -> tuple[list[str], list[float]]:
    from skillhub.routing.cardrouter import CardRouter

    names = router.cards if isinstance(router, CardRouter) else router.prototypes
    return list(names), router.thresholds.tolist()


def _emit(
    base: str,
    router: Any,
    is_chat: bool,
    thresholds: dict[str, float],
    prompts: Sequence[str],
    rows: Sequence[dict[str, Any]],
) -> None:
    from skillhub.routing.cardrouter import CardRouter

    console.emit_json(
        {
            "base": base,
            "router": "cards" if isinstance(router, CardRouter) else "weights",
            "template": "chat" if is_chat else "none",
            "thresholds": _finite(thresholds),
            "prompts": [
                {"prompt": prompt, **row, "scores": _finite(row["scores"])}
                for prompt, row in zip(prompts, rows, strict=True)
            ],
        }
    )


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """Return values as JSON can hold them."""
    return {name: value if isfinite(value) else None for name, value in values.items()}


def _print_many(prompts: Sequence[str], rows: Sequence[dict[str, Any]], thresholds: dict[str, float]) -> None:
    """Print for each prompt the pack that comes nearest, and what was chosen."""
    cells = []
    for prompt, row in zip(prompts, rows, strict=True):
        nearest = max(thresholds, key=lambda name: row["scores"][name] - thresholds[name])
        line = " ".join(prompt.split())
        shown = line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
        cells.append([shown, row["choice"] or _BASE, f"{row['scores'][nearest]:.2f}", _number(thresholds[nearest], 2)])
    console.table(["Prompt", "Chosen", "Score", "Threshold"], cells, right=(2, 3))


def _mark(row: dict[str, Any], name: str | None) -> str:
    return "✓" if row["choice"] == name else ""


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if value > float("-inf") else "–"
