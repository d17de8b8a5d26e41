"""Forgetting in figures: the share of each skill's gain that is left, in tables, as a picture and as a report.

The *gain* of a skill is by how much its fine-tune lowers the NLL per answer token on held-out rows, and the share *kept* is
``(base - model) / (base - fine-tune)``: 1 where a model does as well as the skill's own fine-tune, 0 as badly as the base, negative
where it does worse. *Earlier skills* are all but the one that was learned last.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

Facts = dict[str, Any]

WAYS = {
    "routed": "routed packs",
    "ties": "packs fused, TIES",
    "average": "packs fused, average",
    "linear": "packs fused, sum × 0.4",
    "sequential": "sequential fine-tuning",
}
"""The ways that are compared, and what they are called in the picture."""
_COLOURS = {
    "routed": "#1b6ca8",
    "ties": "#2a9d6f",
    "average": "#7a5ca8",
    "linear": "#d98e04",
    "sequential": "#b5382a",
}
_MARKS = {"routed": "o", "ties": "s", "average": "D", "linear": "^", "sequential": "X"}


def kept(figures: Facts, skill: str, nll: float) -> float:
    """Return the share of a skill's gain that a model keeps whose NLL on it is ``nll``."""
    before, after = figures["base"][skill]["nll"], figures["tuned"][skill]["nll"]
    return float((before - nll) / (before - after))


def kept_by_stage(figures: Facts, way: str) -> list[list[float]]:
    """Return for each stage the shares that are kept of all skills so far, in the order of learning."""
    return [
        [kept(figures, skill, facts[skill]["nll"]) for skill in figures["skills"][:number]]
        for number, facts in enumerate(figures["ways"][way], start=1)
    ]


def earlier_kept(figures: Facts, way: str) -> list[float]:
    """Return the mean share that is kept of the earlier skills, from the second stage on."""
    return [mean(shares[:-1]) for shares in kept_by_stage(figures, way)[1:]]


def oracle_kept(figures: Facts) -> list[float]:
    """Return what :func:`earlier_kept` would be if every row got its own pack."""
    own = [kept(figures, skill, figures["own pack"][skill]["nll"]) for skill in figures["skills"]]
    return [mean(own[:number]) for number in range(1, len(own))]


def rightly_routed(figures: Facts) -> list[float]:
    """Return for each stage the share of held-out rows, of all skills so far, that got their own pack."""
    return [
        mean(float(choice == skill) for skill, choices in chosen.items() for choice in choices)
        for chosen in figures["chosen"]
    ]


def skills_table(figures: Facts) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: each skill's NLL by the base, its own fine-tune and pack, and by each way after the last stage."""
    last = {way: figures["ways"][way][-1] for way in WAYS}
    rows = []
    for skill in figures["skills"]:
        results = [figures[title][skill] for title in ("base", "tuned", "own pack")]
        rows.append(
            [skill, *(f"{facts['nll']:.2f}" for facts in results), *(f"{last[way][skill]['nll']:.2f}" for way in WAYS)]
        )
    return ["NLL per answer token", "base", "fine-tune", "own pack", *WAYS], rows


def ways_table(figures: Facts) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: each way after the last stage."""
    rows = []
    for way in WAYS:
        last, shares = figures["ways"][way][-1], kept_by_stage(figures, way)[-1]
        skills = figures["skills"]
        rows.append(
            [
                way,
                f"{mean(shares[:-1]):.1%}",
                f"{min(shares[:-1]):.1%}",
                f"{shares[-1]:.1%}",
                f"{mean(last[skill]['tokens'] for skill in skills):.1%}",
                f"{mean(last[skill]['exact'] for skill in skills):.1%}",
                f"{last['ordinary_text']:.3f}",
            ]
        )
    return ["", "earlier kept", "the least", "last one", "tokens right", "answers right", "ordinary text"], rows


def stages_table(figures: Facts) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: the mean share kept of the earlier skills after each stage, a row a way, and the oracle's."""
    shares = {way: earlier_kept(figures, way) for way in WAYS} | {"each row its own pack": oracle_kept(figures)}
    rows = [[way, *(f"{share:.1%}" for share in by_stage)] for way, by_stage in shares.items()]
    return ["after skill", *(str(stage) for stage in range(2, len(figures["skills"]) + 1))], rows


def draw(figures: Facts, path: Path) -> None:
    """Draw what is kept of the earlier skills by stage, a line a way, and of each skill, a heat-map a way.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise SystemExit(
            "The picture needs matplotlib: pip install matplotlib. Run it again, and only that is done."
        ) from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        picture = plt.figure(figsize=(11, 8.2), layout="constrained")
        above, below = picture.subfigures(2, 1, height_ratios=(1, 1.1))
        _draw_lines(above.subplots(), figures)
        panels = below.subplots(1, len(WAYS), sharey=True)
        for panel, way in zip(panels, WAYS, strict=True):
            image = _draw_map(panel, figures, way)
        panels[0].set_yticks(range(len(figures["skills"])), figures["skills"])
        below.colorbar(image, ax=panels, label="share of the gain kept", extend="min", shrink=0.8)
        picture.savefig(path, dpi=130)
        plt.close(picture)


def _draw_lines(axes: Any, figures: Facts) -> None:
    stages = range(2, len(figures["skills"]) + 1)
    for way, title in WAYS.items():
        shares = earlier_kept(figures, way)
        axes.plot(
            stages, shares, color=_COLOURS[way], marker=_MARKS[way], label=f"{title} ({shares[-1]:.0%} at the end)"
        )
    axes.plot(
        stages, oracle_kept(figures), color="grey", linestyle="--", linewidth=1, label="each row with its own pack"
    )
    axes.axhline(0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks(stages, [f"{stage}\n{figures['skills'][stage - 1]}" for stage in stages])
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_ylabel("mean share of the gain kept")
    axes.set_title("What is left of all earlier skills after one more was learned", loc="left", fontweight="bold")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_map(axes: Any, figures: Facts, way: str) -> Any:
    count = len(figures["skills"])
    shares = kept_by_stage(figures, way)
    table = [
        [shares[stage][skill] if skill <= stage else float("nan") for stage in range(count)] for skill in range(count)
    ]
    image = axes.imshow(table, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(count), range(1, count + 1))
    axes.set_xlabel("skills learned")
    axes.set_title(WAYS[way], fontsize=9, color=_COLOURS[way], fontweight="bold")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def report(figures: Facts) -> str:
    """Return the figures as Markdown: what was done, what came of it, and what it does not show."""
    count, routed = len(figures["skills"]), kept_by_stage(figures, "routed")
    sizes = [size / 1e6 for size in figures["pack bytes"].values()]
    own = [kept(figures, skill, figures["own pack"][skill]["nll"]) for skill in figures["skills"]]
    right = rightly_routed(figures)
    fused = "; ".join(f"*{way}*: {told}" for way, told in figures["fused"].items())
    text = [facts["ordinary_text"] for facts in figures["ways"]["routed"]]
    return f"""# {count} skills one after another: what is left of the earlier ones

{figures["model"]} in bf16; {figures["steps"]} steps of AdamW a skill on all weights, {figures["batch"]} rows a step; {figures["rows"]} held-out rows a
skill, asked in a wording that was never trained on. NLL is per answer token, teacher forced, in bf16. *Sequential* trains one model on
one skill after the other. Three ways fuse all packs into the weights ({fused}; usual weights, not
tuned). *Routed* is `graft(mode="routed")`, which chooses a pack, or the base, for each row by the packs' routing
cards. *Kept* is the share of the gain in NLL that the skill's own fine-tune has over the base.

![The share kept of earlier skills by stage, and of each skill by stage](../../examples/forget_free.png)

## After the last skill

{_markdown(*ways_table(figures))}

"Earlier kept" is the mean over the first {count - 1} skills, "the least" the smallest of these shares, "last one" the share of the skill learned
last; "ordinary text" is the NLL per token of paragraphs that belong to no skill (base: {figures["base"]["ordinary_text"]:.3f}; after each stage, routed:
{min(text):.3f} to {max(text):.3f}).

{_markdown(*skills_table(figures))}

## Earlier skills after each stage, mean share kept

{_markdown(*stages_table(figures))}

## Routing

Of the held-out rows of all skills so far, at the least stage {min(right):.1%} got their own pack, after the last {right[-1]:.1%}. The smallest share of any
skill's gain that was kept at any stage is {min(map(min, routed)):.1%}. A pack alone on the base keeps {min(own):.1%} to {max(own):.1%} (mean {mean(own):.1%}) and takes {min(sizes):.1f} to
{max(sizes):.1f} MB.

## What this does not show

One seed, one order of the skills, one small model, {figures["rows"]} rows a skill: differences of a few per cent between fused ways mean nothing. The skills are
small, are learned in seconds and differ in what is asked, which makes routing easy; weights and densities of the fused ways were not
searched, and sequential fine-tuning has no replay or other remedy against forgetting.

Command: `python examples/forget_free.py --report benchmarks/reports/forget_free.md --plot examples/forget_free.png`
"""


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
