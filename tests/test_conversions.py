from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import transformers
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    revert_weight_conversion,
)

from skillhub.conversions import Mixture, View, positions, trace_save
from skillhub.errors import UsageError
from skillhub.layout import layout_of
from tests.support.tiny_models import make_model


class Scale(ConversionOps):
    """Multiplies instead of moving."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def convert(self, input_dict: dict[str, Any], target_patterns: list[str], **_: Any) -> dict[str, torch.Tensor]:
        (tensors,) = input_dict.values()
        return {target_patterns[0]: tensors[0] * self.factor}

    @property
    def reverse_op(self) -> ConversionOps:
        return Scale(2.0)


def model_with(*conversions: Any) -> Any:
    """Return a tiny Llama that a save converts back as if it had been loaded with the given conversions."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=12, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, head_dim=4
    )
    model = transformers.LlamaForCausalLM(config)
    model._weight_conversions = list(conversions)
    return model


CONVERSIONS = {
    "renamed": ([WeightRenaming("ffn", "mlp")], View),
    "transposed": ([WeightConverter("up.kernel", "up_proj.weight", operations=[Transpose(0, 1)])], View),
    "split": (
        [WeightConverter(["up_a.weight", "up_b.weight"], "up_proj.weight", operations=[Concatenate(dim=1)])],
        View,
    ),
    "listed": ([WeightConverter("up.*.row", "up_proj.weight", operations=[MergeModulelist(dim=0)])], View),
    "fused": (
        [WeightConverter("gate_up.weight", ["gate_proj.weight", "up_proj.weight"], operations=[Chunk(dim=0)])],
        Mixture,
    ),
    "interleaved": ([WeightConverter("up.mixed", "up_proj.weight", operations=[Interleave(dim=0)])], Mixture),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_slots_agree_with_the_conversion_itself(name: str) -> None:
    conversions, kind = CONVERSIONS[name]
    model = model_with(*conversions)
    expected = revert_weight_conversion(model, dict(model.state_dict()))
    origins = trace_save(model)
    assert origins.keys() == expected.keys()
    changed = {key for key in expected if key not in model.state_dict()}
    assert changed and all(isinstance(origins[key], kind) for key in changed)
    slots = {slot.saved_name: slot for slot in layout_of(model).slots.values()}
    for key, tensor in expected.items():
        assert torch.equal(slots[key].read(), tensor)
    values = {key: torch.randn(slot.shape) for key, slot in slots.items()}
    for key, slot in slots.items():
        slot.write(values[key])
    converted = revert_weight_conversion(model, dict(model.state_dict()))
    assert all(torch.equal(converted[key], values[key]) for key in values)


def test_parameters_that_do_not_lie_in_order_are_read_and_written() -> None:
    for name in ("split", "interleaved"):
        model = model_with(*CONVERSIONS[name][0])
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.data = layer.mlp.up_proj.weight.data.t().contiguous().t()
        converted = revert_weight_conversion(model, dict(model.state_dict()))
        expected = {key: tensor.clone() for key, tensor in converted.items()}
        for slot in layout_of(model).slots.values():
            assert torch.equal(slot.read(), expected[slot.saved_name])
            slot.write(expected[slot.saved_name] + 1)
            assert torch.equal(slot.read(), expected[slot.saved_name] + 1)


def test_mixtures_are_as_small_as_they_can_be() -> None:
    model = model_with(*CONVERSIONS["fused"][0])
    mixtures = {origin for origin in trace_save(model).values() if isinstance(origin, Mixture)}
    assert sorted(mixture.parameters for mixture in mixtures) == [
        (f"model.layers.{layer}.mlp.gate_proj.weight", f"model.layers.{layer}.mlp.up_proj.weight") for layer in (0, 1)
    ]
    for mixture in mixtures:
        ((name, shape),) = mixture.outputs
        assert torch.equal(positions(model, mixture)[name].flatten(), torch.arange(2 * 12 * 8))
        assert shape == (24, 8)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_conversion_that_computes_is_refused(factor: float) -> None:
    model = model_with(WeightConverter("up.scaled", "up_proj.weight", operations=[Scale(factor)]))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slot = next(slot for slot in layout_of(model).slots.values() if slot.saved_name.endswith("up.scaled"))
    for access in (slot.read, lambda: slot.write(torch.zeros(slot.shape))):
        with pytest.raises(UsageError, match="more than move values"):
            access()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("function", ["__enter__", "__exit__"])
def test_an_interruption_does_not_leave_torch_changed(function: str) -> None:
    model, stops = make_model("llama"), list[str]()

    def interrupt(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_name == function and frame.f_code.co_filename == torch.overrides.__file__:
            if event == ("return" if function == "__enter__" else "call") and not stops:
                stops.append(function)
                raise KeyboardInterrupt
            return interrupt
        return None

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            trace_save(model)
    finally:
        sys.settrace(before)
    assert stops == [function]
    assert torch.zeros(2, 3).T.contiguous().is_contiguous()


def test_weights_shared_by_hand_are_refused() -> None:
    model = model_with()
    model.model.layers[0].mlp.up_proj.weight = model.model.layers[1].mlp.up_proj.weight
    with pytest.raises(UsageError, match="shares weights"):
        trace_save(model)
