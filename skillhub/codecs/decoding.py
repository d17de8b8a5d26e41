"""Decoding: encoded parts back into a tensor, and the digest that pins its bits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch

from skillhub.codecs import exact, lowrank, rows, sign, sparse, zero
from skillhub.codecs.encoding import EncodedPart, EncodedTensor, count_elements, damaged
from skillhub.codecs.streams import tensor_bytes
from skillhub.errors import NewerSchemaError

Decoder = Callable[[EncodedPart, tuple[int, ...], torch.Tensor | None], torch.Tensor]
"""(part, shape, what the parts before it gave or None) → the tensor with this part applied; may change its input in place."""

CODECS: dict[str, Decoder] = {
    zero.ID: zero.decode,
    exact.ID: exact.decode,
    lowrank.ID: lowrank.decode,
    rows.ID: rows.decode,
    sign.ID: sign.decode,
    sparse.ID: sparse.decode,
}


def decode(encoded: EncodedTensor) -> torch.Tensor:
    """Decode a tensor; the same bits on every machine, for every number of threads.

    Returns:
        When ``encoded.operation`` is ``"add"``: the fp32 delta, contiguous, of ``encoded.shape``. When it is ``"set"``: the tuned
        tensor itself, in its stored dtype.

    Raises:
        NewerSchemaError: a part's codec is unknown.
        IntegrityError: parts, configs, sizes or streams contradict each other. Sizes are checked before anything is allocated.
    """
    count_elements(encoded.shape)
    for part in encoded.parts:
        if part.codec not in CODECS:
            raise NewerSchemaError(
                f"The pack uses the codec {part.codec!r}, which this version does not know.",
                hint="Upgrade skillhub-packs.",
            )
    result: torch.Tensor | None = None
    for part in encoded.parts:
        result = CODECS[part.codec](part, encoded.shape, result)
    if result is None:
        raise damaged("has no parts")
    return result


def decoded_digest(tensor: torch.Tensor) -> str:
    """Return the sha256 (hex) of a decoded tensor's little-endian bytes, in row-major order."""
    return hashlib.sha256(tensor_bytes(tensor).data).hexdigest()
