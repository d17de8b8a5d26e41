"""Candidates: the ways of storing a matrix that allocation chooses from, tensor by tensor.

Adding one means a class with the methods of :class:`skillhub.codecs.candidates.interface.Candidate` and a place in
:func:`find_candidates`.
"""

from __future__ import annotations

from skillhub.codecs.candidates.changes import Changes
from skillhub.codecs.candidates.components import Components
from skillhub.codecs.candidates.interface import Candidate, Offer, Target, Values
from skillhub.codecs.candidates.remainders import Remainder

__all__ = ["Candidate", "Changes", "Components", "Offer", "Remainder", "Target", "Values", "find_candidates"]


def find_candidates(target: Target, level: float | None = None) -> tuple[Components, Remainder, Changes]:
    """Return what competes for a matrix; where two cost the same, the first of them is taken.

    Args:
        target: the matrix.
        level: that of :class:`Remainder`, where it is known.
    """
    components = Components(target)
    return components, Remainder(components, level), Changes(target)
