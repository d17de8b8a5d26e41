"""What a folder of exported adapters says of itself: what each is, and what of its pack is not in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from skillhub.interop.exports import ROUNDING, Measured
from skillhub.interop.fits import Misfit, Reason
from skillhub.interop.launching import SCRIPT_FILE

README_FILE = "README.md"

_PLURALS = {
    Reason.EMBEDDING: "embeddings",
    Reason.HEAD: "output heads",
    Reason.NORM: "norms",
    Reason.BIAS: "biases",
    Reason.EXPERT: "tensors of fused experts",
    Reason.LAYER: "not of linear layers",
    Reason.ADDED: "added tensors",
    Reason.REMOVED: "removed tensors",
    Reason.RESIZED: "resized tensors",
    Reason.VALUES: "not differences",
}


@dataclass(frozen=True)
class ExportedAdapter:
    """One adapter that was written.

    Attributes:
        name: of its folder, and what vLLM serves it as.
        pack: the pack or adapter that it was made from.
        digest: that one's digest.
        layers: how many linear layers and embeddings it changes by factors.
        norms: how many norms it holds as a whole.
        rank: the highest rank of its factors.
        size: bytes of its files.
        misfits: what the pack changes and the adapter does not.
        measured: how near it is to the pack; None for an adapter of peft.
        is_shared: whether it changes layers that share a weight, each by the same factors.
    """

    name: str
    pack: str
    digest: str
    layers: int
    norms: int
    rank: int
    size: int
    misfits: tuple[Misfit, ...]
    measured: Measured | None
    is_shared: bool = False


def counted(misfits: Iterable[Misfit]) -> str:
    """Return what does not fit for people, such as ``61 norms and biases, 1 embedding``."""
    counts = Counter(misfit.reason for misfit in misfits).most_common()
    return ", ".join(f"{count} {_PLURALS.get(reason, reason) if count > 1 else reason}" for reason, count in counts)


def readme(model: str, fingerprint: str, adapters: Sequence[ExportedAdapter], *, is_served: bool) -> str:
    """Return the README of the folder (Markdown).

    Args:
        model: the base's class.
        fingerprint: of the base.
        adapters: what is in the folder.
        is_served: whether there is a launch script.
    """
    lines = [
        "# LoRA adapters of SkillPacks",
        "",
        f"Written by skillhub for the base with the fingerprint `{fingerprint}` ({model}).",
        "",
        "| Adapter | Pack | Layers | Norms | Rank | Error | Left out | Digest |",
        "|---|---|---|---|---|---|---|---|",
        *map(_row, adapters),
        "",
        "*Error* and *left out* are shares of the sum of squares of the pack's whole delta: what the adapter's layers say other",
        "than the pack, and what is in tensors that do not fit.",
        "",
        "    from peft import PeftModel",
        f'    model = PeftModel.from_pretrained(model, "./{adapters[0].name}")',
        "",
    ]
    lines += _cautions(adapters)
    if is_served:
        lines += [
            f"`./{SCRIPT_FILE}` serves all of them with vLLM, where that supports LoRA for {model}; a request names its adapter as",
            "`model`. Which adapter fits a prompt, `skillhub route` tells; vLLM itself does not choose.",
            "",
        ]
    for adapter in adapters:
        if adapter.misfits:
            lines += [f"## What {adapter.name} leaves out", "", *_left_out(adapter), ""]
    return "\n".join(lines)


def _cautions(adapters: Sequence[ExportedAdapter]) -> list[str]:
    """Return what peft does otherwise than one would think."""
    lines = []
    if any(adapter.norms for adapter in adapters):
        lines += [
            "Norms are saved as whole modules. With those peft can only switch between adapters (`set_adapter`), not mix them in a",
            "batch (`adapter_names`): for that write adapters of linear layers alone, `skillhub export --format vllm --partial`.",
            "",
        ]
    if any(adapter.is_shared for adapter in adapters):
        lines += [
            "The embeddings are tied, and the adapter changes both ends of them alike. Use it as it is: merged by peft",
            "(`merge_and_unload`), the difference would be added to the one weight twice. For merged weights take `skillhub fuse`.",
            "",
        ]
    return lines


def _row(adapter: ExportedAdapter) -> str:
    error, left_out = shares(adapter)
    cells = (
        adapter.name,
        adapter.pack,
        adapter.layers,
        adapter.norms,
        adapter.rank,
        error,
        left_out,
        f"`{adapter.digest}`",
    )
    return f"| {' | '.join(map(str, cells))} |"


def shares(adapter: ExportedAdapter) -> tuple[str, str]:
    """Return error and what is left out for people; a dash where they are not known."""
    if adapter.measured is None:
        return "-", "-" if adapter.misfits else "nothing"
    left_out = f"{adapter.measured.left_out:.1%}" if adapter.misfits else "nothing"
    return f"{adapter.measured.error:.1e}" if adapter.measured.error > ROUNDING else "none", left_out


def _left_out(adapter: ExportedAdapter) -> list[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for misfit in adapter.misfits:
        groups[misfit.reason.value].append(misfit.tensor)
    return [f"- {reason}: {', '.join(f'`{name}`' for name in names)}" for reason, names in sorted(groups.items())]
