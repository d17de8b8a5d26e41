"""Types of fields that several formats share; reading checks them and names the path of a bad one."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
FingerprintText = Annotated[str, Meta(pattern=r"^skb1:[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0)]

Text = Annotated[str, Meta(max_length=10_000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*\Z")]
"""Text for people; without the control characters that command a terminal."""

Label = Annotated[str, Meta(max_length=1_000, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*\Z")]
"""One line, which shows in the order in which it is written."""
