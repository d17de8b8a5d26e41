"""Running a fine-tune over calibration rows, and noting what goes into its layers and which gradients come back.

The gradients are those of the log-likelihood of tokens drawn from the model's own predictions: their second moments are the Fisher
information. Of an encoder they are those of a random direction of the normalised mean of the last hidden states. Padding and the
first position, where models keep what belongs nowhere, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from skillhub.calibration.models import load_model
from skillhub.calibration.moments import Calibration, LayerRecord
from skillhub.calibration.texts import Row, answered_rows, batches, encoder_rows, padded
from skillhub.devices import give_memory_back
from skillhub.files import disk_errors
from skillhub.halves import quick_products
from skillhub.layout import Layout, ViewSlot, layout_of
from skillhub.progress import Progress

ROOM = 2.5
"""Memory that a forward and backward pass takes, in sizes of the model's weights."""


def calibrate(
    tuned: Path, base: Path, prompts: Sequence[str], folder: Path, *, progress: Progress | None = None
) -> Calibration:
    """Read prompts with a fine-tune, and note what its layers see.

    Args:
        tuned: folder of the fine-tune, with its config.
        base: folder of its base, whose tokenizer is taken where the fine-tune has none.
        prompts: what users of the pack might write, at least one.
        folder: for files of about 4 bytes a position and layer width; to be kept as long as the result is used.
        progress: called with (``calibration texts``, done, all).

    Raises:
        UsageError: the fine-tune cannot be loaded as a model with a tokenizer, or the tokenizer is of another model.
        DiskError: the disk is full.
    """
    give_memory_back()
    model, tokenizer, generates = load_model(tuned, base, room=ROOM)
    rows = answered_rows(model, tokenizer, prompts) if generates else encoder_rows(model, tokenizer, prompts)
    give_memory_back()
    recorder = _Recorder(model, folder, generates)
    done = 0
    with disk_errors(folder), ExitStack() as hooks, torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        recorder.attach(hooks)
        for group in batches(rows):
            recorder.read(group, tokenizer.pad_token_id or 0)
            done += len(group)
            if progress:
                progress("calibration texts", done, len(rows))
    found = recorder.finish(rows)
    del model, recorder
    give_memory_back()
    return found


@dataclass(eq=False)
class _Layer:
    """Files that are being written for one linear layer."""

    module: nn.Linear
    inputs: IO[bytes]
    gradients: IO[bytes]
    positions: int = 0
    lengths: list[int] = field(default_factory=list)
    trace: float = 0.0

    def finish(self) -> LayerRecord:
        """Return what was noted."""
        files = Path(self.inputs.name), Path(self.gradients.name)
        rows, columns = self.module.weight.shape
        return LayerRecord(*files, rows, columns, self.positions, tuple(self.lengths), self.trace)


@dataclass(eq=False)
class _Recorder:
    """Notes what happens in a model while rows are read."""

    model: Any
    folder: Path
    generates: bool
    layers: dict[str, _Layer] = field(default_factory=dict)
    embedding_trace: float = 0.0
    head_trace: float = 0.0
    predictions: float = 0.0
    _seen: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    _ids: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    _scale: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def attach(self, hooks: ExitStack) -> None:
        """Hook into the embedding and into the linear layers whose weights are checkpoint tensors of their own."""
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        hooks.callback(embedding.register_forward_hook(self._watch_embedding).remove)
        for name, module in _own_layers(self.model).items():
            if module is head:
                continue
            inputs, gradients = (self.folder / f"{len(self.layers)}.{what}" for what in ("inputs", "gradients"))
            files = [hooks.enter_context(path.open("wb")) for path in (inputs, gradients)]
            layer = self.layers[name] = _Layer(module, files[0], files[1])
            hooks.callback(module.register_forward_hook(self._watch(layer)).remove)

    def read(self, rows: Sequence[Row], pad: int) -> None:
        """Run the model over rows, forwards and back."""
        ids, mask = padded([row.tokens for row in rows], pad)
        self._ids, self._seen = ids, mask.bool()
        if self.generates:
            self._seen[:, 0] = False
        self._scale = torch.tensor([row.weight for row in rows])[:, None].expand(ids.shape)
        device = self.model.device
        with torch.enable_grad(), quick_products():
            outputs = self.model(
                input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=self.generates
            )
            loss = self._token_loss(outputs, rows) if self.generates else self._direction_loss(outputs, mask.to(device))
            torch.autograd.backward(loss)

    def _token_loss(self, outputs: Any, rows: Sequence[Row]) -> torch.Tensor:
        """Return the negative log-likelihood of one token drawn for each prediction that matters."""
        scored = torch.zeros(self._ids.shape, dtype=torch.bool)
        for number, row in enumerate(rows):
            scored[number, row.answer - 1 : len(row.tokens) - 1] = True
        logits = outputs.logits[scored.to(outputs.logits.device)].float()
        chances = logits.detach().softmax(-1)
        drawn = torch.multinomial(chances.cpu(), 1)[:, 0].to(logits.device)
        weights = self._scale[scored]
        states = outputs.hidden_states[-1][scored.to(logits.device)].detach().float().cpu() * weights[:, None]
        self.head_trace += float(states.square().sum(1) @ (chances * (1 - chances)).sum(1).cpu())
        self.predictions += float((weights == 1).sum())
        return nn.functional.cross_entropy(logits, drawn, reduction="sum")

    def _direction_loss(self, outputs: Any, mask: torch.Tensor) -> torch.Tensor:
        """Return the sum over texts of their normalised embedding in a random direction, which has the length of a unit vector's mean."""
        states = outputs.last_hidden_state.float()
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        directions = torch.randn(pooled.shape).to(pooled.device)
        self.predictions += float((self._scale[:, 0] == 1).sum())
        return (nn.functional.normalize(pooled, dim=-1) * directions).sum()

    def _watch_embedding(self, _: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        watched = output.detach().requires_grad_()
        watched.register_hook(self._note_embedding)  # type: ignore[no-untyped-call]
        return watched

    def _note_embedding(self, gradient: torch.Tensor) -> None:
        found = self._noted(gradient) * self._scale[self._seen][:, None]
        self.embedding_trace += float(found.square().sum())

    def _watch(self, layer: _Layer) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            given = args[0].detach()
            if output.requires_grad and given.shape[:-1] == self._ids.shape:
                output.register_hook(lambda gradient: self._note(layer, given, gradient))  # type: ignore[no-untyped-call]

        return hook

    def _note(self, layer: _Layer, given: torch.Tensor, gradient: torch.Tensor) -> None:
        inputs, gradients = self._noted(given), self._noted(gradient) * self._scale[self._seen][:, None]
        layer.inputs.write(_stored(inputs))
        layer.gradients.write(_stored(gradients))
        layer.positions += len(inputs)
        if self.generates:
            layer.trace += float(inputs.square().sum(1) @ gradients.square().sum(1))
            return
        lengths = self._seen.sum(1).tolist()
        layer.lengths += lengths
        for one, other in zip(torch.split(inputs, lengths), torch.split(gradients, lengths), strict=True):
            layer.trace += float(((one @ one.T) * (other @ other.T)).sum())

    def _noted(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states at the positions that count, in fp32."""
        return states[self._seen.to(states.device)].float().cpu()

    def finish(self, rows: Sequence[Row]) -> Calibration:
        """Return all that was noted."""
        layers = {name: layer.finish() for name, layer in self.layers.items()}
        return Calibration(layers, self._vocabularies(), max(self.predictions, 1.0), tuple(rows), self.generates)

    def _vocabularies(self) -> dict[str, float]:
        """Return canonical name → trace, of the embedding and of the head: of both where they are one matrix."""
        names, found = _names_by_parameter(layout_of(self.model)), dict[str, float]()
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        for name, module in self.model.named_modules(remove_duplicate=False):
            if module in (embedding, head) and f"{name}.weight" in names:
                parts = ((embedding, self.embedding_trace), (head, self.head_trace))
                traces = (trace for part, trace in parts if part is not None and part.weight is module.weight)
                found[names[f"{name}.weight"]] = sum(traces)
        return found


def _own_layers(model: Any) -> dict[str, nn.Linear]:
    """Return canonical name → linear layer, of those whose weight is a checkpoint tensor as it is."""
    names = _names_by_parameter(layout_of(model))
    linear = {f"{name}.weight": module for name, module in model.named_modules() if type(module) is nn.Linear}
    return {names[parameter]: module for parameter, module in linear.items() if parameter in names}


def _names_by_parameter(layout: Layout) -> dict[str, str]:
    """Return parameter → canonical name, of those that a checkpoint holds as they are."""
    return {
        slot.parameter_name: name for name, slot in layout.slots.items() if isinstance(slot, ViewSlot) and slot.is_whole
    }


def _stored(states: torch.Tensor) -> bytes:
    return states.to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
