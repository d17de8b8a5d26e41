"""Linear discriminants between a pack's prompts and the background, in the whitened space."""

from __future__ import annotations

from dataclasses import dataclass

import torch

RIDGE = 20.0
"""Ridge penalty, in units of the variance that one direction of a unit vector has (1 / dimensions)."""


@dataclass(frozen=True, eq=False)
class Discriminant:
    """x ↦ ⟨w, x⟩ + b, fitted to 1 on a pack's prompts and −1 on the background.

    Attributes:
        direction: (hidden,) fp32, w.
        offset: b.
    """

    direction: torch.Tensor
    offset: float

    def __call__(self, units: torch.Tensor) -> torch.Tensor:
        """Return the (rows,) fp32 values of whitened unit vectors."""
        return units @ self.direction + self.offset


def fit_discriminant(own: torch.Tensor, others: torch.Tensor) -> Discriminant:
    """Return the ridge regression of ±1 on whitened unit vectors; both sides weigh the same, whatever their numbers.

    With a strong penalty w is nearly the difference of the two means; the directions in which the pack's own prompts differ most
    from each other are damped (regularized discriminant analysis; Friedman 1989).

    Args:
        own: (rows, hidden) of the pack's prompts.
        others: (rows, hidden) of the background.
    """
    rows = torch.cat([own, others]).to(torch.float64)
    signs = torch.cat([torch.ones(len(own)), -torch.ones(len(others))]).to(torch.float64)
    weights = torch.cat([torch.full((len(side),), 0.5 / len(side)) for side in (own, others)]).to(torch.float64)
    center = weights @ rows  # the weighted mean of the signs is 0
    scaled = (rows - center) * weights.sqrt()[:, None]
    # in the dual form the system is as large as there are prompts, however wide the model
    penalty = RIDGE / 2 / rows.shape[1] * torch.eye(len(rows), dtype=torch.float64)
    direction = scaled.T @ torch.linalg.solve(scaled @ scaled.T + penalty, signs * weights.sqrt())
    return Discriminant(direction.float(), float(-(center @ direction)))
