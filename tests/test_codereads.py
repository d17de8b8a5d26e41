"""What modules read of their own and their parts' parameters, told from their code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from skillhub.compose.routed.codereads import reader_of, reads_itself
from tests.support.tiny_models import make_model


class Reading(nn.Module):
    """Reads the weight of a child, and only looks at that of another."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.looked_at, self.called, self.both = (nn.Linear(2, 2) for _ in range(4))
        self.scale, self.idle = nn.Parameter(torch.ones(2)), self.called.bias
        self.whole = Whole()
        self.inner = nn.ModuleDict({"part": nn.Linear(2, 2)})

    def forward(self, inputs: Any) -> Any:
        found = functional.linear(inputs.to(self.looked_at.weight.dtype), self.read.weight) * self.scale
        if isinstance(self.called.weight, torch.Tensor):
            found = self.looked_at(self.called(found))
        found = self.both(found) + functional.linear(self.whole(found), self.both.weight)
        return [self.inner.part.weight @ one for one in found]


class Whole(nn.Module):
    """Calls a child, and reads it in some cases; it has no parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(2, 2)

    def forward(self, inputs: Any) -> Any:
        return functional.linear(inputs, self.both.weight) if self.training else self.both(inputs)


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("read", "weight", ("", "read.weight")),
        ("read", "bias", ("read", "bias")),
        ("looked_at", "weight", ("looked_at", "weight")),
        ("called", "weight", ("called", "weight")),
        ("inner.part", "weight", ("", "inner.part.weight")),
        ("", "scale", ("", "scale")),
        ("both", "weight", ("", "both.weight")),
        ("whole.both", "weight", ("whole.both", "weight")),
    ],
)
def test_a_parameter_is_read_by_its_module_or_by_one_around(path: str, name: str, expected: tuple[str, str]):
    assert reader_of(dict(Reading().named_modules()), path, name) == expected


def test_a_module_may_have_a_name_for_what_it_does_not_read():
    assert reads_itself(Reading(), "scale") and not reads_itself(Reading(), "idle")


@pytest.mark.parametrize(
    "kind", ["llama", "tied", "gpt2", "bert", "bert_mlm", "t5", "mixtral", "qwen_moe", "gemma", "gemma2"]
)
def test_modules_of_common_models_compute_with_their_own_parameters(kind: str):
    modules = dict(make_model(kind).named_modules())
    for path, module in modules.items():
        for name in module._parameters:
            assert reader_of(modules, path, name) == (path, name)


def test_linear_attention_reads_its_convolution():
    modules = dict(make_model("qwen3_5").named_modules())
    path = "model.layers.0.linear_attn"
    assert reader_of(modules, f"{path}.conv1d", "weight") == (path, "conv1d.weight")
    assert reader_of(modules, f"{path}.out_proj", "weight") == (f"{path}.out_proj", "weight")
