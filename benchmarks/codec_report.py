"""The report of the codec benchmark: tables, the ratios that were promised, and the plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from codec_deltas import Row
from codec_methods import CALIBRATED, DATA_FREE, PEER, PUBLISHED
from codec_scores import Sample, draw_sample

Floats = npt.NDArray[np.float64]

BASE, TUNED, LOSSLESS = "base", "fine-tune", "skillhub `lossless`"

SIZES_WANTED = {"Delta-CoMe, nearest": 1 / 3, "Delta-CoMe, GPTQ": 1 / 2, "SVD r=32, fp16": 1 / 8}
"""Peer → the largest share of its bytes that ours may take at its divergence."""

DIVERGENCE_WANTED = ("BitDelta", 1 / 100)
"""A peer, and the largest share of its divergence that ours may have at its bytes."""

GAINS_WANTED = {"near": (0.995, 40), "small": (0.99, 60), "tiny": (0.95, 150)}
"""Preset → least share of the gain that it keeps, and least ratio to the checkpoint."""

LOSSLESS_SAVING_WANTED = 0.35


@dataclass(frozen=True)
class Point:
    """One method on one delta.

    Attributes:
        divergence: (resamples + 1,): mean KL a token, or 1 − cosine a sentence; the first is that of the sample itself.
        gain: likewise: share of the fine-tune's gain that is kept.
        lost: rows that the fine-tune had exact and this has not; won: the other way round.
    """

    name: str
    family: str
    size: int
    seconds: float
    divergence: Floats
    gain: Floats
    nll: float | None
    exact: float | None
    lost: int
    won: int
    control: float
    unrounded: float | None


@dataclass(frozen=True)
class Result:
    """All methods on one delta."""

    name: str
    checkpoint: int
    rows: int
    tokens: int
    is_encoder: bool
    sample: Sample
    points: tuple[Point, ...]
    lossless: dict[str, int]

    def point(self, name: str) -> Point | None:
        """Return the method of this name."""
        return next((one for one in self.points if one.name == name), None)

    def family(self, family: str) -> list[Point]:
        """Return the methods of a family, by size."""
        return sorted((one for one in self.points if one.family == family), key=lambda one: one.size)


def read_result(name: str, saved: dict[str, Any]) -> Result:
    """Return what was measured of a delta, with resampled means."""
    sample = draw_sample([Row(question, ()) for question in saved["questions"]])
    tokens, control_tokens = np.array(saved["tokens"]), np.array(saved["control_tokens"])
    raw = {one["name"]: {key: np.array(values) for key, values in one["scores"].items()} for one in saved["points"]}

    def mean(values: Floats) -> Floats:
        found: Floats = (sample.draws @ values) / (sample.draws @ tokens)
        return found

    key = "divergence" if saved["is_encoder"] else "nll"  # what the fine-tune gains: nearness to itself, or likelihood
    base, tuned = mean(raw[BASE][key]), mean(raw[TUNED][key])
    points = []
    for one in saved["points"]:
        scores = raw[one["name"]]
        exact, before = scores.get("exact"), raw[TUNED].get("exact")
        paired = exact is not None and before is not None
        known = None if one["unrounded"] is None else np.array(one["unrounded"], dtype=np.float64)
        part = None if known is None else ~np.isnan(known)
        points.append(
            Point(
                name=one["name"],
                family=one["family"],
                size=one["size"],
                seconds=one["seconds"],
                divergence=mean(scores["divergence"]),
                gain=(base - mean(scores[key])) / (base - tuned),
                nll=float(mean(scores["nll"])[0]) if "nll" in scores else None,
                exact=float(exact.mean()) if exact is not None else None,
                lost=int(((before == 1) & (exact == 0)).sum()) if paired else 0,
                won=int(((before == 0) & (exact == 1)).sum()) if paired else 0,
                control=float(np.sum(one["control"]) / control_tokens.sum()),
                unrounded=None if known is None or part is None else float(known[part].sum() / tokens[part].sum()),
            )
        )
    return Result(
        name,
        saved["checkpoint"],
        len(tokens),
        int(tokens.sum()),
        saved["is_encoder"],
        sample,
        tuple(points),
        saved["lossless"],
    )


def size_at(points: Sequence[tuple[float, float]], divergence: float) -> tuple[float, str]:
    """Return the size at which a ladder of (size, divergence) reaches a divergence, and ``""``, ``"<"`` or ``">"`` for a bound.

    Between two rungs both logarithms are taken as a straight line. Beyond the ladder nothing is extrapolated: the nearest rung bounds.
    """
    falling = _frontier(points)
    if not falling or falling[-1][1] > divergence:
        return (falling[-1][0] if falling else float("nan")), ">"
    if falling[0][1] <= divergence:
        return falling[0][0], "" if falling[0][1] == divergence else "<"
    for (small, worse), (large, better) in pairwise(falling):
        if better <= divergence < worse:
            if better <= 0:  # lossless: no logarithm leads there
                return large, "<"
            share = np.log(worse / divergence) / np.log(worse / better)
            return float(small * (large / small) ** share), ""
    raise AssertionError("a falling ladder has a rung for it")


def divergence_at(points: Sequence[tuple[float, float]], size: float) -> tuple[float, str]:
    """Return the divergence of a ladder at a size, and ``""`` or, outside of the ladder, ``"<"`` or ``">"`` for a bound."""
    falling = _frontier(points)
    if not falling or size < falling[0][0]:
        return (falling[0][1] if falling else float("nan")), ">"
    for (small, worse), (large, better) in pairwise(falling):
        if small <= size < large:
            if better <= 0:
                return worse, "<"
            share = np.log(size / small) / np.log(large / small)
            return float(worse * (better / worse) ** share), ""
    return falling[-1][1], "" if size == falling[-1][0] else "<"


def _frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the rungs that no smaller one is as good as, by size."""
    kept: list[tuple[float, float]] = []
    for size, divergence in sorted(points):
        if not kept or divergence < kept[-1][1]:
            kept.append((size, divergence))
    return kept


def describe(result: Result) -> list[str]:
    """Return a delta's section of the report."""
    unit = "1 − cosine" if result.is_encoder else "KL a token"
    what = "sentences" if result.is_encoder else f"held-out rows, {result.tokens} answer tokens"
    lines = [f"## {result.name}", "", f"{result.rows} {what}; checkpoint {result.checkpoint / 1e6:.1f} MB.", ""]
    lines += [
        f"| Method | MB | of the checkpoint | {unit} | 95 % | unrounded | NLL | gain kept | 95 % | exact | lost, won | unrelated | CPU s |",
        "|" + "---|" * 13,
    ]
    order = [None, DATA_FREE, CALIBRATED, PEER]
    lines += [
        _row(result, one) for family in order for one in result.family(family or "") if one.family == (family or "")
    ]
    for table in (_table_of_published(result), _table_of_lossless(result), check(result)):
        lines += ["", *table] if table else []
    return [*lines, ""]


def _row(result: Result, one: Point) -> str:
    kl, low, high = result.sample.interval(one.divergence)
    gain, least, most = result.sample.interval(one.gain)
    cells = [
        one.name,
        f"{one.size / 1e6:.2f}" if one.size else "–",
        f"1/{result.checkpoint / one.size:.0f}" if one.size else "–",
        _small(kl),
        f"{_small(low)} – {_small(high)}",
        "–" if one.unrounded is None else _small(one.unrounded),
        "–" if one.nll is None else f"{one.nll:.4f}",
        f"{gain:.2%}",
        f"{least:.2%} – {most:.2%}",
        "–" if one.exact is None else f"{one.exact:.1%}",
        "–" if one.exact is None else f"{one.lost}, {one.won}",
        _small(one.control),
        f"{one.seconds:.0f}" if one.seconds else "–",
    ]
    return f"| {' | '.join(cells)} |"


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def _table_of_published(result: Result) -> list[str]:
    lines = [
        "Recipes as they were published, in their own packed form:",
        "",
        "| Recipe | MB | divergence | gain kept |",
        "|---|---|---|---|",
    ]
    for one in result.family(PUBLISHED):
        lines.append(
            f"| {one.name.removesuffix(', as published')} | {one.size / 1e6:.2f} | {_small(float(one.divergence[0]))} | {float(one.gain[0]):.2%} |"
        )
    return lines


def _table_of_lossless(result: Result) -> list[str]:
    if not result.lossless:
        return []
    lines = ["Lossless:", "", "| | MB | of the checkpoint |", "|---|---|---|"]
    lines += [
        f"| {name} | {size / 1e6:.2f} | {size / result.checkpoint:.1%} |" for name, size in result.lossless.items()
    ]
    return lines


def check(result: Result) -> list[str]:
    """Return a table of what was to be reached and what is."""
    lines = ["| To be reached | data-free | calibrated |", "|---|---|---|"]
    for peer, most in SIZES_WANTED.items():
        if found := result.point(peer):
            cells = [_size_ratio(result, family, found, most) for family in (DATA_FREE, CALIBRATED)]
            lines.append(f"| at {peer}'s divergence: at most {most:.2f} of its bytes | {' | '.join(cells)} |")
    peer, most = DIVERGENCE_WANTED
    if found := result.point(peer):
        cells = [_divergence_ratio(result, family, found, most) for family in (DATA_FREE, CALIBRATED)]
        lines.append(f"| at {peer}'s bytes: at most {most:.2f} of its divergence | {' | '.join(cells)} |")
    for preset, (gain, ratio) in GAINS_WANTED.items():
        cells = [_kept(result, result.point(f"{family}, {preset}"), gain, ratio) for family in (DATA_FREE, CALIBRATED)]
        lines.append(f"| `{preset}`: {gain:.1%} of the gain at 1/{ratio} | {' | '.join(cells)} |")
    ours = result.lossless.get(LOSSLESS)
    if ours and (others := [size for name, size in result.lossless.items() if name != LOSSLESS]):
        saving = 1 - ours / min(others)
        wanted = "" if result.is_encoder else f" {_verdict(saving >= LOSSLESS_SAVING_WANTED)}"  # it is in fp32
        lines.append(
            f"| lossless: in bf16 {LOSSLESS_SAVING_WANTED:.0%} under the best of zstd and xz | {saving:.1%}{wanted} | |"
        )
    return lines


def _ladder(result: Result, family: str) -> list[tuple[float, float]]:
    points = [(float(one.size), float(one.divergence[0])) for one in result.family(family)]
    lossless = result.lossless.get(LOSSLESS)
    return [*points, (float(lossless), 0.0)] if lossless and points else points


def _size_ratio(result: Result, family: str, peer: Point, most: float) -> str:
    ladder = _ladder(result, family)
    if not ladder:
        return "–"
    size, bound = size_at(ladder, float(peer.divergence[0]))
    ratio = size / peer.size
    return f"{bound}{ratio:.3f} {_verdict(bound != '>' and ratio <= most)}"


def _divergence_ratio(result: Result, family: str, peer: Point, most: float) -> str:
    ladder = _ladder(result, family)
    if not ladder:
        return "–"
    divergence, bound = divergence_at(ladder, float(peer.size))
    ratio = divergence / float(peer.divergence[0])
    return f"{bound}{ratio:.4f} {_verdict(bound != '>' and ratio <= most)}"


def _kept(result: Result, one: Point | None, gain: float, ratio: int) -> str:
    if one is None:
        return "–"
    smaller = result.checkpoint / one.size
    return f"{float(one.gain[0]):.2%} at 1/{smaller:.0f} {_verdict(float(one.gain[0]) >= gain and smaller >= ratio)}"


def _verdict(reached: bool) -> str:
    return "✓" if reached else "✗"


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw bytes against divergence, a panel for each delta."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(4.2 * len(results), 4.4), layout="constrained")
    styles = {DATA_FREE: ("o-", "tab:cyan"), CALIBRATED: ("o-", "tab:blue"), PEER: ("s", "tab:red")}
    axes: Any = figure.subplots(1, len(results), squeeze=False)
    for place, result in zip(axes[0], results, strict=True):
        for family, (marker, colour) in styles.items():
            points = [one for one in result.family(family) if one.divergence[0] > 0]
            sizes, divergences = ([float(one.size) / 1e6 for one in points], [one.divergence[0] for one in points])
            place.plot(sizes, divergences, marker, color=colour, label=family, markersize=4)
            for one in points if family == PEER else []:
                place.annotate(
                    one.name, (one.size / 1e6, one.divergence[0]), fontsize=6, xytext=(3, 3), textcoords="offset points"
                )
        place.set(xscale="log", yscale="log", xlabel="MB", title=result.name)
        place.set_ylabel("1 − cosine" if result.is_encoder else "KL(fine-tune ‖ packed) a token")
        place.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        place.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        place.xaxis.set_minor_formatter(NullFormatter())
        place.grid(alpha=0.3, which="both")
    axes[0, 0].legend(fontsize=7)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
