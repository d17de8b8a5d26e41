"""GraftLLM's module-aware adaptive compression, the recipe of the paper that SkillPacks come from.

Du et al., "Knowledge Grafting of Large Language Models" (arXiv 2505.18502), §3.2: what a tensor does decides how it is compressed.

- Embeddings and output head are pruned: the share α (``embedding_share``) of weights with the largest deltas is kept.
- Attention: singular components at a fixed rank.
- Everything else that is a matrix (MLP): the smallest rank whose components hold the share β (``mlp_energy``) of the sum of squares.
- The singular vectors of both are quantized at 8, 4 and 2 bits by GPTQ (:mod:`skillhub.recipes.components`).

The authors' code has, for hidden size 4096: 20 components at 8 bits, 180 at 4, and 800 (attention) or 1200 (MLP) at 2; we keep those as shares of
a matrix's shorter side. It neither prunes nor chooses a rank by energy, and has no values for α and β. Our β = 0.9 gives MLPs
about that rank on three real fine-tunes (75 to 297 of 576, where that is 197); α = 0.1 keeps three quarters of the square of an embedding's delta.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from skillhub.canonical import is_vocabulary_tensor
from skillhub.codecs import EncodedTensor, sparse
from skillhub.codecs.factorization import Factors, factorize
from skillhub.codecs.lowrank import MAX_RANK, matrix_shape
from skillhub.recipes.components import Band, compress_bands, cut_bands, quantize_bands
from skillhub.recipes.encoding import HALF_BYTES, Compressed, is_matrix, keep_exactly

HIDDEN_SIZE = 4096
"""Of the models that the authors' numbers of components are for."""

INDEX_BYTES = 4

_ATTENTION = re.compile("attn|attention", re.IGNORECASE)


@dataclass(frozen=True)
class Options:
    """What GraftLLM leaves to choose.

    Attributes:
        embedding_share: the paper's α, the share of the weights of embeddings and head that are kept, 0 to 1; 0 drops their delta.
        mlp_energy: the paper's β, the share of the sum of squares that the components of an MLP matrix hold, above 0 to 1.
        attention_rank: rank of an attention matrix over its shorter side.
        leading: (share of the shorter side, bits) of the strongest components.
        last_bits: the precision of all others.
    """

    embedding_share: float = 0.1
    mlp_energy: float = 0.9
    attention_rank: float = 1000 / HIDDEN_SIZE
    leading: tuple[tuple[float, int], ...] = ((20 / HIDDEN_SIZE, 8), (180 / HIDDEN_SIZE, 4))
    last_bits: int = 2


PAPER = Options()


def compress(
    name: str, delta: torch.Tensor, second_moment: torch.Tensor | None = None, options: Options = PAPER
) -> Compressed:
    """Compress a tensor's delta as its name asks.

    Args:
        name: canonical name.
        delta: fp32, any shape.
        second_moment: fp32 (columns, columns), ``E[x xᵀ]`` of the inputs of the module: calibrated by GPTQ. None: rounded to nearest.
        options: α, β and the precisions.
    """
    if not is_matrix(delta):
        return keep_exactly(delta)
    if is_vocabulary_tensor(name):
        return prune(delta, options.embedding_share)
    rows, columns = matrix_shape(tuple(delta.shape))
    short = min(rows, columns)
    if _ATTENTION.search(name):
        bands = choose_bands(short, max(1, round(options.attention_rank * short)), options)
        return compress_bands(name, delta, bands, second_moment)
    factors = factorize(name, delta.reshape(rows, columns), min(short, MAX_RANK))
    bands = choose_bands(short, count_components(factors, delta, options.mlp_energy), options)
    return quantize_bands(factors, tuple(delta.shape), bands, second_moment) or keep_exactly(delta)


def prune(delta: torch.Tensor, share: float) -> Compressed:
    """Keep the ``share`` of a delta's weights that are largest in magnitude, exactly; published, they take fp16 values and places."""
    flat = delta.detach().cpu().reshape(-1).numpy()
    kept = _largest(np.abs(flat), min(round(share * flat.size), int(np.count_nonzero(flat))))
    encoded = EncodedTensor(tuple(delta.shape), (sparse.encode(torch.from_numpy(flat * kept).reshape(delta.shape)),))
    count = int(kept.sum())
    places = min(-(-flat.size // 8), INDEX_BYTES * count)  # a bit for every weight, or an index for every kept one
    return Compressed(encoded, HALF_BYTES * count + places)


def _largest(magnitudes: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.bool_]:
    """Return which ``count`` magnitudes are the largest; of equal ones, the first."""
    if count == 0:
        return np.zeros(magnitudes.size, dtype=bool)
    threshold = np.partition(magnitudes, magnitudes.size - count)[magnitudes.size - count]
    kept: npt.NDArray[np.bool_] = magnitudes > threshold
    ties = np.flatnonzero(magnitudes == threshold)
    kept[ties[: count - int(kept.sum())]] = True
    return kept


def count_components(factors: Factors, delta: torch.Tensor, share: float) -> int:
    """Return the smallest number of components that hold the ``share`` of the delta's sum of squares; all, where none does."""
    energy = float(delta.square().sum(dtype=torch.float64))
    held = np.cumsum(np.square(factors.values))
    return min(int(np.searchsorted(held, share * energy)) + 1, len(held))


def choose_bands(short: int, rank: int, options: Options = PAPER) -> list[Band]:
    """Return the bands of ``rank`` components of a matrix with the shorter side ``short``; each leading one is of one at least."""
    leading = [Band(max(1, round(share * short)), bits) for share, bits in options.leading]
    return cut_bands([*leading, Band(rank, options.last_bits)], rank)
