"""Secrets never reach a screen, a log or a report: what is shown goes through :func:`presentable`.

Our own messages hold no secrets. Those of other libraries, which ``--verbose`` shows, quote addresses with passwords or
signatures in them, and headers that they find wrong. So every token that is used is made known here, and is blotted
out of whatever is shown, together with what looks like a secret.
"""

from __future__ import annotations

import os
import re

BLOT = "***"

_SHORTEST = 6
"""Shorter ones are no tokens; blotting them out would garble ordinary words."""

_VARIABLES = re.compile(r"HF_TOKEN|HUGGING_FACE_HUB_TOKEN|SKILLHUB_TOKEN(_.*)?")

_PATTERNS = (
    (re.compile(r"(://)[^/\s@'\"]+@"), rf"\1{BLOT}@"),
    (re.compile(r"\b(Bearer|Basic)( +)[^\s'\",)]+", re.IGNORECASE), rf"\1\2{BLOT}"),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), f"hf_{BLOT}"),
    (
        re.compile(
            r"([?&](?:[\w-]*signature|[\w-]*token|[\w-]*credential|sig|key-pair-id|policy)=)[^&\s'\")]+", re.IGNORECASE
        ),
        rf"\1{BLOT}",
    ),
)
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_known: set[str] = set()


def hide(secret: str | None) -> None:
    """Blot out a secret from now on, wherever it would be shown."""
    for piece in (secret or "").split():  # a token with a line break in it is quoted in pieces
        if len(piece) >= _SHORTEST:
            _known.add(piece)


def printable(text: str) -> str:
    """Return a text from elsewhere without what commands a terminal, or reverses what stands on it."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def presentable(text: str) -> str:
    """Return a text from elsewhere as it may be shown: :func:`printable`, and without secrets."""
    for name, value in os.environ.items():
        if _VARIABLES.fullmatch(name):
            hide(value)
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, BLOT)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return printable(text)
