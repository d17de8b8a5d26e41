"""Fitting the scales of a pack's components to what the fine-tune predicts.

What is left out of many tensors pulls predictions the same way, which no metric of one tensor knows. So, when all tensors are encoded, every
component's scale gets a factor with which the packed model says of the calibration rows what the fine-tune does: knowledge distillation
(Hinton et al. 2015, §2, at temperature 1) of scales alone, as BitDelta does it (Liu et al. 2024, §3). The codes stay, and a few thousand
numbers cannot learn rows by heart: on a real fine-tune the divergence of held-out rows fell by a third.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from skillhub.calibration.models import load_model
from skillhub.calibration.texts import Row, padded
from skillhub.codecs.lowrank import Factors
from skillhub.devices import give_memory_back
from skillhub.files import disk_errors
from skillhub.layout import ViewSlot, layout_of
from skillhub.progress import Progress

STEPS = 64
RATE = 0.53
"""By what share of itself a factor changes in a step, for a divergence as large as without any component. A divergence is quadratic in the errors of
the factors, so the rate follows the root of that share: where little is wrong, larger steps would be noise, and where much is, smaller
ones would not get there."""

LARGEST_RATE = 0.1
"""What a share of 1/28 and more has: all steps together change a factor 26-fold, or little more."""

COMPARED_GROUPS = 8
"""Groups of rows that show how large the divergence is without any component."""

DECAYS = 0.9, 0.95
"""Of Adam (Kingma & Ba 2015), whose rate also falls to nothing by half a cosine."""

SMALLEST_GRADIENT = 1e-18
"""Smaller ones, whose squares fp32 does not have, do not count as large."""

LEAST = -6e4
"""Log-probability of what a model rules out: half precision has none that is much less, and minus infinity has no divergence."""

STEP_TOKENS = 160
"""Tokens of a step, padding included: memory holds what a backward pass needs of so many."""

ROOM = 2.0
"""Memory that a step takes, in sizes of the model's weights."""

Floats = npt.NDArray[np.float64]


def fitting_bytes(parameters: int) -> int:
    """Return about how much memory fitting takes for a model of so many parameters, which are in fp32."""
    return int(4 * ROOM * parameters)


def fit_scales(
    tuned: Path,
    base: Path,
    rows: Sequence[Row],
    weights: Iterable[tuple[str, torch.Tensor]],
    factors: Mapping[str, Factors],
    folder: Path,
    progress: Progress | None = None,
) -> dict[str, Floats]:
    """Return what the scale of each component is to be multiplied by, under the name of its tensor.

    Tensors get none that no linear layer or embedding holds as they are.

    Args:
        tuned: folder of the fine-tune.
        base: folder of its base.
        rows: what it is read to; at least one.
        weights: canonical name → fp32 tensor of the packed model, of all that differ from the fine-tune's.
        factors: canonical name → components.
        folder: for what the fine-tune predicts, two bytes a word of the vocabulary for each token; it is gone at the end.
        progress: called with (``fitting scales``, steps done, all).

    Raises:
        UsageError: the fine-tune cannot be loaded.
        DiskError: the disk is full.
    """
    give_memory_back()
    model, tokenizer, generates = load_model(tuned, base, room=ROOM, dtype=torch.float32)
    groups, lesson = _groups(rows, tokenizer.pad_token_id or 0)[:STEPS], _Lesson(model, generates)
    with ExitStack() as hooks:
        spool = Path(hooks.enter_context(TemporaryDirectory(dir=folder)))
        files = {group: spool / f"{number}.npy" for number, group in enumerate(groups)}
        for group, file in files.items():
            with torch.no_grad(), disk_errors(file):
                np.save(file, lesson.predict(group).clamp_min(LEAST).half().cpu().numpy())
        slots = layout_of(model).slots
        for name, tensor in weights:
            if name in slots:
                slots[name].write(tensor)
        fits, divergence = _fits(model, factors, hooks), 0.0

        def loss_of(group: _Group) -> torch.Tensor:
            return lesson.loss(group, torch.from_numpy(np.load(files[group])).to(model.device))

        with _without_components(fits.values()):
            without = mean(float(loss_of(group).detach()) for group in groups[:COMPARED_GROUPS])
        for step in range(STEPS):
            loss = loss_of(groups[step % len(groups)])
            torch.autograd.backward(loss)
            divergence += float(loss.detach())
            share = divergence / (step + 1) / without if without > 0 else 0.0
            for fit in fits.values():
                fit.improve(step, share)
            if progress:
                progress("fitting scales", step + 1, STEPS)
    return {name: fit.gains.double().cpu().numpy() for name, fit in fits.items()}


@dataclass(frozen=True, eq=False)
class _Group:
    """Rows that are read at once.

    Attributes:
        ids: (rows, longest) tokens.
        mask: (rows, longest), 0 where there is padding.
        scored: (rows, longest), where a prediction matters.
        weights: (rows,), what the divergence of each row counts for, beside those that are read with it. All groups count alike: general
            text, a group of which is worth little by its weights, holds the packed model to what it said of other things.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    scored: torch.Tensor
    weights: torch.Tensor


def _groups(rows: Sequence[Row], pad: int) -> list[_Group]:
    """Return all rows by groups of mixed kinds, the same ones every time; a row of more tokens than a step has is one by itself."""
    lists: list[list[Row]] = [[]]
    for place in np.random.default_rng(0).permutation(len(rows)):
        row = rows[place]
        if lists[-1] and max(len(one.tokens) for one in (*lists[-1], row)) * (len(lists[-1]) + 1) > STEP_TOKENS:
            lists.append([])
        lists[-1].append(row)
    return [_group(some, pad) for some in lists]


def _group(rows: Sequence[Row], pad: int) -> _Group:
    ids, mask = padded([row.tokens for row in rows], pad)
    scored = torch.zeros(ids.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        scored[number, max(row.answer - 1, 0) : len(row.tokens) - 1] = True
    return _Group(ids, mask, scored, torch.tensor([row.weight**2 for row in rows]))


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What a model is to say of rows: the next token, or the direction of a text's mean state."""

    model: Any
    generates: bool

    def predict(self, group: _Group) -> torch.Tensor:
        """Return (predicted tokens, vocabulary) log-probabilities or (rows, width) unit vectors, fp32."""
        ids, mask = group.ids.to(self.model.device), group.mask.to(self.model.device)
        outputs = self.model(input_ids=ids, attention_mask=mask)
        if self.generates:
            logits: torch.Tensor = outputs.logits[group.scored.to(ids.device)]
            return logits.float().log_softmax(-1)
        states = outputs.last_hidden_state.float() * mask[..., None]
        return nn.functional.normalize(states.sum(1) / mask.sum(1, keepdim=True), dim=-1)

    def weights(self, group: _Group) -> torch.Tensor:
        """Return what each prediction counts for."""
        return group.weights.repeat_interleave(group.scored.sum(1)) if self.generates else group.weights

    def loss(self, group: _Group, expected: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean of divergences from what is expected: of Kullback and Leibler in nats, or 1 − cosine."""
        with torch.enable_grad():
            found, expected = self.predict(group), expected.float()
            if self.generates and not bool(found.isfinite().all()):  # a model may rule tokens out
                found = found.clamp_min(LEAST)
            lost = (expected.exp() * (expected - found)).sum(1) if self.generates else 1 - (expected * found).sum(1)
            weights = self.weights(group).to(lost.device)
            return (lost * weights).sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)


@dataclass(eq=False)
class _Fit:
    """The components of one tensor and what their scales are multiplied by.

    Attributes:
        weight: (rows, columns), the model's; follows the factors.
        left: (rank, rows) with the scales, as they were encoded.
        right: (rank, columns).
        gains: (rank,).
    """

    weight: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    gains: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.gains, self.gradient = torch.ones(len(self.left)), torch.zeros(len(self.left))
        self._mean, self._square = torch.zeros(len(self.left)), torch.zeros(len(self.left))

    def add(self, gains: torch.Tensor) -> None:
        """Add the components to the weight once more, each as often as its gain says."""
        self.weight.addmm_((self.left * gains[:, None].to(self.left.device)).T, self.right)

    def improve(self, step: int, share: float) -> None:
        """Take a step of Adam along the gradient that was gathered, in the logarithms of the gains: they stay positive.

        Args:
            step: how many there were before.
            share: the mean of the divergences that were found until now, as a share of what it is without any component.
        """
        gradient = self.gradient * self.gains
        for average, found, decay in zip(
            (self._mean, self._square), (gradient, gradient.square()), DECAYS, strict=True
        ):
            average.lerp_(found, 1 - decay)
        mean, square = (
            average / (1 - decay ** (step + 1))
            for average, decay in zip((self._mean, self._square), DECAYS, strict=True)
        )
        rate = min(RATE * math.sqrt(max(share, 0.0)), LARGEST_RATE) * (1 + math.cos(math.pi * step / STEPS)) / 2
        change = self.gains * torch.expm1(-rate * mean / square.sqrt().clamp_min(SMALLEST_GRADIENT))
        self.gains += change
        self.add(change)
        self.gradient.zero_()

    def watch_linear(self, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Gather the gradients of a linear layer, from its inputs and from the gradients at its outputs."""
        given = args[0].detach().flatten(0, -2)

        def gather(gradient: torch.Tensor) -> None:
            flat = gradient.flatten(0, -2)
            some = flat.any(1)  # most positions predict nothing that matters, and an output head is wide
            parts = (flat[some] @ self.left.T) * (given[some] @ self.right.T)
            self.gradient += parts.sum(0).cpu()

        if output.requires_grad:
            output.register_hook(gather)  # type: ignore[no-untyped-call]

    def watch_embedding(self, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Gather the gradients of an embedding."""
        ids = args[0].detach().flatten()

        def gather(gradient: torch.Tensor) -> None:
            self.gradient += (self.left[:, ids].T * (gradient.flatten(0, -2) @ self.right.T)).sum(0).cpu()

        if output.requires_grad:
            output.register_hook(gather)  # type: ignore[no-untyped-call]


@contextmanager
def _without_components(fits: Iterable[_Fit]) -> Iterator[None]:
    """Take all components out of the model, and put them back."""
    for fit in fits:
        fit.add(-fit.gains)
    yield
    for fit in fits:
        fit.add(fit.gains)


def _fits(model: Any, factors: Mapping[str, Factors], hooks: ExitStack) -> dict[str, _Fit]:
    """Return what is fitted, under canonical names; from now on forward passes of the model gather gradients for it."""
    embedding = model.get_input_embeddings()
    hooks.callback(embedding.register_forward_hook(lambda _, __, output: output.detach().requires_grad_()).remove)
    modules: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        if type(module) in (nn.Linear, nn.Embedding):
            modules.setdefault(id(module.weight), []).append(module)
    fits = {}
    for name, slot in layout_of(model).slots.items():
        if name not in factors or not isinstance(slot, ViewSlot) or not slot.is_whole:
            continue
        held = slot.parameters()[0]
        if id(held) not in modules:
            continue
        sides = (torch.from_numpy(side).to(held.device) for side in (factors[name].left, factors[name].right))
        fit = fits[name] = _Fit(held.detach(), *sides)
        for module in modules[id(held)]:
            watch = fit.watch_linear if isinstance(module, nn.Linear) else fit.watch_embedding
            hooks.callback(module.register_forward_hook(watch).remove)
    return fits
