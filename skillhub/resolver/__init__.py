"""Which releases to install: candidates with the reason why each was rejected, and the choice among them.

Domain only: this package reads no file and asks no server.
"""

from __future__ import annotations

from skillhub.resolver.candidates import BaseClaim, Candidate, Rejection, find_candidates
from skillhub.resolver.resolution import Pick, Request, Resolution, find_conflict, resolve

__all__ = [
    "BaseClaim",
    "Candidate",
    "Pick",
    "Rejection",
    "Request",
    "Resolution",
    "find_candidates",
    "find_conflict",
    "resolve",
]
