"""Which releases to install: candidates with the reason why each was rejected, and the choice among them.

Domain only: this package reads no file and asks no server. The choice itself is :func:`skillhub.resolver.solving.resolve`,
which is not imported here, because most commands need no solver.
"""

from __future__ import annotations

from skillhub.resolver.candidates import BaseClaim, Candidate, Rejection, find_candidates
from skillhub.resolver.resolution import Pick, Resolution

__all__ = [
    "BaseClaim",
    "Candidate",
    "Pick",
    "Rejection",
    "Resolution",
    "find_candidates",
]
