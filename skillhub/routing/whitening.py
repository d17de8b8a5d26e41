"""Whitening: pooled hidden states of a base, rescaled so that its background looks the same in every direction.

Hidden states have a few directions of huge variance that say little, and these drown all others in any cosine. Dividing the leading
principal directions of the background by their deviation takes that away; every state is then scaled to length 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Whitening:
    """x ↦ the unit vector of (x − c) + Σᵢ gᵢ ⟨qᵢ, x − c⟩ qᵢ.

    Attributes:
        center: (hidden,) fp32, the background's mean c.
        basis: (rank, hidden) fp16, its leading principal directions qᵢ.
        gains: (rank,) fp32, gᵢ.
    """

    center: torch.Tensor
    basis: torch.Tensor
    gains: torch.Tensor

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return (rows, hidden) fp32 unit vectors of pooled states."""
        centered = states.to(torch.float32) - self.center
        basis = self.basis.to(torch.float32)
        whitened = centered + (centered @ basis.T * self.gains) @ basis
        return torch.nn.functional.normalize(whitened, dim=1)


def fit_whitening(states: torch.Tensor, rank: int) -> Whitening:
    """Return the whitening of a background.

    The directions beyond ``rank`` are taken to have one variance, their mean (probabilistic PCA; Tipping and Bishop 1999).

    Args:
        states: (rows, hidden) pooled states of the background.
        rank: leading directions to rescale; fewer where there are fewer rows or dimensions.
    """
    states = states.to(torch.float64)
    center = states.mean(0)
    _, values, directions = torch.linalg.svd(states - center, full_matrices=False)
    hidden = states.shape[1]
    rank = max(0, min(rank, len(states) - 2, hidden - 1))
    spread = values.square() / max(len(states) - 1, 1)
    rest = spread[rank:].sum() / (hidden - rank)
    gains = torch.where(spread[:rank] > rest, (rest / spread[:rank]).sqrt(), 1.0) - 1
    return Whitening(center.float(), directions[:rank].half(), gains.float())
