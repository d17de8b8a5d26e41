"""Keeping a variant's files to a number of bytes: one price for the whole model, found from estimates and put right by what they turn out to be."""

from __future__ import annotations

from pathlib import Path

from skillhub.codecs.allocation import choose_lambda, estimate_payload
from skillhub.deltaencoding import DeltaEncoder
from skillhub.deltafiles import DeltaWriter
from skillhub.errors import UsageError
from skillhub.manifest import TensorEntry

TOLERANCE = 0.02
"""How much over its budget a payload may be."""

WASTE = 0.05
"""How much of a budget may be left over where estimates promised that it would be used."""

ATTEMPTS, LOWERINGS = 8, 3
"""How often the price is raised, and lowered, at most."""


def write_within(encoder: DeltaEncoder, folder: Path, budget: int, *, may_grow: bool) -> dict[str, TensorEntry]:
    """Encode every changed tensor into the variant's files; return what the manifest says of each.

    The analysis estimates what a price costs. Where the bytes turn out to be more than the budget, all is encoded again at
    a higher price; where they are fewer than it said, at a lower one.

    Args:
        encoder: of the fine-tune.
        folder: the variant's.
        budget: bytes of payload.
        may_grow: whether there is to be :func:`with_room` (a preset never fails).
    """
    analyses, set_bytes = encoder.analyse()
    exact_bytes = set_bytes + sum(analysis.fixed_bytes for analysis in analyses.values())
    if may_grow:
        budget = with_room(budget, exact_bytes)
    differences = list(analyses.values())
    price = choose_lambda(differences, budget, set_bytes=set_bytes)
    lowered = raised = payload = 0
    while raised < ATTEMPTS:
        before, payload = payload, encoder.payload(analyses, price)
        expected = set_bytes + estimate_payload(differences, price)
        grows = payload > (1 + TOLERANCE) * before  # not so where nothing is left to be bought
        if lowered < LOWERINGS and not raised and grows and payload < (1 - WASTE) * min(expected, budget):
            lowered += 1
            aim = int((1 - TOLERANCE) * budget * expected / max(payload, 1))
            price = choose_lambda(differences, aim, set_bytes=set_bytes)
        elif payload <= budget * (1 + TOLERANCE):
            return encoder.encode(analyses, price, DeltaWriter(folder))
        else:
            price *= (1.1 + raised) * (payload - exact_bytes) / max(budget - exact_bytes, 1)
            raised += 1
    raise UsageError(
        f"The pack does not fit {budget} bytes: its smallest form that was found takes {payload}.",
        hint=f"Choose a budget of at least {payload} bytes.",
        minimum=payload,
    )


def with_room(budget: int, exact_bytes: int) -> int:
    """Return the bytes of a preset's payload: what must be stored exactly comes on top where it takes more than half.

    So an output head of its own, say, does not take what the rest of the fine-tune needs.
    """
    return budget + exact_bytes if 2 * exact_bytes > budget else budget
