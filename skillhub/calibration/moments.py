"""What calibration found, as metrics of matrices.

Of the gradient ``Γ = g xᵀ`` of the weights at each position (of an encoder, which says one thing of a whole text: summed over its positions) these are
the metrics ``E[Γ Γᵀ]`` and ``E[Γᵀ Γ]``, the best Kronecker product in one step of power iteration (Morwani et al. 2024, §3). So
where gradients are large an input counts for more, and the other way round. On a real fine-tune that halved the divergence at equal bytes over moments that
count all positions alike, and full moments of gradients did better than their diagonal by two thirds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from skillhub.calibration.texts import Row, not_finite
from skillhub.codecs.metrics import Metric, Metrics, diagonal_metric, metric_of, uniform_metric

MAX_SIDE = 8192
"""Longer sides get a diagonal metric: a full one would take more memory than the matrix."""

MAX_POSITIONS = 2048
"""Positions of a layer that its moments are taken from: those where input and gradient are largest."""

SHORT_SUPPLY = 64
"""Positions that a matrix must have been seen at."""


VOCABULARY_SHARE = 0.1
"""What the trace of a vocabulary counts for. Most of it is of few tokens; where bytes went by all of it, a tenth of them would have served the
predictions of a real fine-tune better in its layers."""


@dataclass(frozen=True)
class LayerRecord:
    """What was noted of a linear layer: files of bfloat16, position by position.

    Attributes:
        inputs: (positions, columns) file.
        gradients: (positions, rows) file, of the gradients at its outputs.
        rows: outputs.
        columns: inputs.
        positions: how many.
        lengths: of a model that says one thing of a whole text: how many positions each text has. Empty where every position counts by
            itself.
        trace: sum over texts (or positions) of the squares of the gradient of the weights.
    """

    inputs: Path
    gradients: Path
    rows: int
    columns: int
    positions: int
    lengths: tuple[int, ...]
    trace: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """Metrics for the tensors of a fine-tune.

    Attributes:
        layers: canonical name → what was noted of a linear layer.
        vocabularies: canonical name → trace of the Fisher information of an embedding, a head, or a matrix that is both. All its rows
            count alike: an error in the rows of tokens that no text shows moves the predictions too, all in one direction, which
            second moments of the texts do not tell (on a real fine-tune they did worse than this).
        predictions: how many predicted tokens (of an encoder: texts) all sums are over.
        rows: the texts that were read.
        generates: whether the model predicts tokens; otherwise it is an encoder.
    """

    layers: Mapping[str, LayerRecord]
    vocabularies: Mapping[str, float]
    predictions: float
    rows: tuple[Row, ...]
    generates: bool

    def __post_init__(self) -> None:
        """Refuse what a model said that has weights which are infinite or no numbers.

        Raises:
            UsageError: a trace is not finite.
        """
        if not all(map(math.isfinite, self.vocabularies.values())):
            raise not_finite()

    def metrics(self, name: str, shape: tuple[int, ...]) -> Metrics:
        """Return what errors in a tensor cost: twice the divergence in nats a predicted token, taken for small errors.

        Tensors that were not seen, or at few positions (experts that got few tokens), count by the median over all seen ones.

        Args:
            name: canonical name.
            shape: of at least two dimensions; all but the first count as columns.
        """
        size = (shape[0], int(np.prod(shape[1:])))
        layer, weight = self.layers.get(name), self.usual_weight
        if layer is not None and (layer.rows, layer.columns) == size and self._is_seen(layer):
            return _layer_metrics(layer, self.predictions)
        if self.vocabularies.get(name):
            weight = VOCABULARY_SHARE * self.vocabularies[name] / (size[0] * size[1]) / self.predictions
        return Metrics(uniform_metric(size[0], weight), uniform_metric(size[1], 1.0))

    def second_moment(self, name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        """Return ``E[x xᵀ]`` over the positions where a linear layer got its inputs ``x``; None where none of this shape was seen enough.

        Args:
            name: canonical name.
            shape: of its weight.

        Returns:
            (columns, columns) fp32.
        """
        layer = self.layers.get(name)
        if layer is None or (layer.rows, layer.columns) != shape or not self._is_seen(layer):
            return None
        inputs = _read(layer.inputs, layer.positions, layer.columns)
        return inputs.T @ inputs / layer.positions

    @property
    def usual_weight(self) -> float:
        """The median over the layers of what the square of one weight's error costs; 1 where none was seen."""
        seen = [layer.trace / (layer.rows * layer.columns) for layer in self.layers.values() if self._is_seen(layer)]
        return median(seen) / self.predictions if seen else 1.0

    @staticmethod
    def _is_seen(layer: LayerRecord) -> bool:
        return layer.positions >= SHORT_SUPPLY and 0 < layer.trace < float("inf")


def _layer_metrics(layer: LayerRecord, predictions: float) -> Metrics:
    inputs = _read(layer.inputs, layer.positions, layer.columns)
    gradients = _read(layer.gradients, layer.positions, layer.rows)
    texts = torch.repeat_interleave(torch.tensor(layer.lengths)) if layer.lengths else None
    if layer.positions > MAX_POSITIONS:
        products = inputs.square().sum(1) * gradients.square().sum(1)
        kept = products.topk(MAX_POSITIONS, sorted=False).indices.sort().values
        inputs, gradients = inputs[kept], gradients[kept]
        texts = None if texts is None else texts[kept]
    if texts is None:
        rows, columns = gradients * inputs.norm(dim=1, keepdim=True), inputs * gradients.norm(dim=1, keepdim=True)
    else:
        rows, columns = _times(_roots(inputs, texts), gradients), _times(_roots(gradients, texts), inputs)
    return Metrics(_metric(rows / layer.trace**0.5), _metric(columns / predictions**0.5))


def _roots(vectors: torch.Tensor, texts: torch.Tensor) -> list[torch.Tensor]:
    """Return for each text the square root of the products of its positions' vectors: (positions, positions)."""
    lengths = torch.bincount(texts).tolist()
    roots = []
    for some in torch.split(vectors, [length for length in lengths if length]):
        values, basis = torch.linalg.eigh(some @ some.T)
        roots.append(basis * values.clamp_min(0).sqrt() @ basis.T)
    return roots


def _times(roots: list[torch.Tensor], vectors: torch.Tensor) -> torch.Tensor:
    """Multiply the vectors of each text with its root."""
    parts = torch.split(vectors, [len(root) for root in roots])
    return torch.cat([root @ part for root, part in zip(roots, parts, strict=True)])


def _metric(vectors: torch.Tensor) -> Metric:
    """Return the metric of vectors, a row each."""
    if vectors.shape[1] > MAX_SIDE:
        return diagonal_metric(vectors.square().sum(0))
    return metric_of(vectors)


def _read(path: Path, positions: int, size: int) -> torch.Tensor:
    stored = torch.from_file(str(path), size=positions * size, dtype=torch.bfloat16)
    return stored.reshape(positions, size).to(torch.float32)
