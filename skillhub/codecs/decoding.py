"""Decoding: encoded parts back into a tensor, and the digest that pins its bits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch

from skillhub.codecs import exact, factors, lossless, lowrank, residual, rows, sign, sparse, zero
from skillhub.codecs.encoding import EncodedTensor, count_elements, damaged
from skillhub.codecs.streams import tensor_bytes
from skillhub.errors import IntegrityError, NewerSchemaError, UsageError, lacks_memory

Decoder = Callable[..., torch.Tensor]
"""(part, shape, what the parts before it gave or None) → the tensor with this part applied; may change its input in place. That of
:mod:`skillhub.codecs.lossless` takes the base's tensor too."""

CODECS: dict[str, Decoder] = {
    zero.ID: zero.decode,
    exact.ID: exact.decode,
    lowrank.ID: lowrank.decode,
    residual.ID: residual.decode,
    rows.ID: rows.decode,
    sign.ID: sign.decode,
    sparse.ID: sparse.decode,
    factors.ID: factors.decode,
    lossless.ID: lossless.decode,
}


def decode(encoded: EncodedTensor, base: torch.Tensor | None = None) -> torch.Tensor:
    """Decode a tensor; the same bits on every machine, for every number of threads, unless an adapter's factors are multiplied.

    Args:
        encoded: the tensor as it is stored.
        base: the base's tensor as it was when this was encoded, which only the operation ``"restore"`` takes.

    Returns:
        When ``encoded.operation`` is ``"add"``: the fp32 delta, contiguous, of ``encoded.shape``. When it is ``"set"`` or
        ``"restore"``: the tuned tensor itself, in its stored dtype.

    Raises:
        UsageError: the tensor is to be restored, and there is no ``base``.
        NewerSchemaError: a part's codec is unknown.
        IntegrityError: parts, configs, sizes or streams contradict each other. Sizes are checked before anything is allocated. Or the
            tensor is larger than the memory that is left.
    """
    try:
        return _decode(encoded, base)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise IntegrityError(
            f"The encoded tensor claims the shape {list(encoded.shape)}, for which there is not enough memory.",
            hint="Use a machine with more memory. If no tensor of the base is as large, the pack is damaged: install or build it again.",
        ) from error


def _decode(encoded: EncodedTensor, base: torch.Tensor | None) -> torch.Tensor:
    count_elements(encoded.shape)
    for part in encoded.parts:
        if part.codec not in CODECS:
            raise NewerSchemaError(
                f"The pack uses the codec {part.codec!r}, which this version does not know.",
                hint="Upgrade skillhub-packs.",
            )
    if encoded.operation == "set" and len(encoded.parts) > 1:
        raise damaged("sets its values beside other parts")
    result: torch.Tensor | None = None
    for number, part in enumerate(encoded.parts, start=1):
        if part.codec == lossless.ID:
            if number < len(encoded.parts) or any(one.codec == factors.ID for one in encoded.parts):
                raise damaged("is restored from, or before, parts that do not go with that")
            lossless.stored_dtype(part)  # damage is told before a base is asked for
            return lossless.decode(part, encoded.shape, result, _required(base))
        result = CODECS[part.codec](part, encoded.shape, result)
    if result is None:
        raise damaged("has no parts")
    return result


def _required(base: torch.Tensor | None) -> torch.Tensor:
    if base is None:
        raise UsageError(
            "The pack stores what to change in its base's tensor to get the fine-tune's, bit for bit; to decode it takes that base.",
            hint="Give the base model that the pack was made for.",
        )
    return base


def decoded_digest(tensor: torch.Tensor) -> str:
    """Return the sha256 (hex) of a decoded tensor's little-endian bytes, in row-major order."""
    return hashlib.sha256(tensor_bytes(tensor).data).hexdigest()


def content_digest(encoded: EncodedTensor, decoded: torch.Tensor) -> str:
    """Return the digest (hex) that a manifest has of a tensor: that of its decoded bits, or where those may differ, of what is stored.

    They may differ where a part is the factors of an adapter. Then the sha256 is over all parts in their order: of factors what
    :meth:`skillhub.codecs.factors.AdapterFactors.update` takes, of other parts the little-endian bytes that each decodes to alone.

    Args:
        encoded: the tensor as it is stored.
        decoded: what :func:`decode` gives of it.

    Raises:
        IntegrityError: as :func:`decode`.
    """
    return factors_digest(encoded) or decoded_digest(decoded)


def factors_digest(encoded: EncodedTensor) -> str | None:
    """Return the digest of :func:`content_digest` of a tensor with factors, without multiplying them; None of others.

    Raises:
        IntegrityError: as :func:`decode`.
    """
    if not any(part.codec == factors.ID for part in encoded.parts):
        return None
    digest = hashlib.sha256()
    for part in encoded.parts:
        if part.codec == factors.ID:
            factors.read_factors(part, encoded.shape).update(digest)
        else:
            digest.update(tensor_bytes(decode(EncodedTensor(encoded.shape, (part,)))).tobytes())
    return digest.hexdigest()
