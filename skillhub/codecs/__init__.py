"""Codecs: how a tensor's delta becomes bytes, and bytes a delta again, with the same bits on every machine.

One file a codec; each has an ``ID``, an ``encode`` and a ``decode``. Adding one means one file and one line in :data:`CODECS`;
one that can be decoded a few rows at a time also has a line in ``skillhub.deltareaders``, without which its tensors are decoded whole.
:mod:`skillhub.codecs.allocation` decides which codec stores a tensor and how finely.
"""

from __future__ import annotations

from skillhub.codecs.decoding import CODECS, content_digest, decode, decoded_digest
from skillhub.codecs.encoding import Arrays, EncodedPart, EncodedTensor

__all__ = ["CODECS", "Arrays", "EncodedPart", "EncodedTensor", "content_digest", "decode", "decoded_digest"]
