from __future__ import annotations

import pytest
import torch

from skillhub.fingerprint import BaseRecord, base_record, canonical_records, record_array
from skillhub.mismatch import explain_mismatch
from tests.checkpoint_examples import TAGS, Tensors, counting, llama


def record(tensors: Tensors) -> BaseRecord:
    return base_record(canonical_records(
        record_array(name, tensor.contiguous().flatten().view(torch.uint8).numpy(), TAGS[tensor.dtype], shape=tuple(tensor.shape))
        for name, tensor in tensors.items()
    ))  # fmt: skip


def explain(actual: Tensors, expected: Tensors | None = None) -> str:
    sentence = explain_mismatch(record(llama() if expected is None else expected), record(actual))
    assert sentence[-1] in ".?" and sentence[-2] not in ".?"
    return sentence


def swapped() -> Tensors:
    tensors = llama()
    result = dict(tensors)
    for name in tensors:
        if ".layers.0." in name:
            other = name.replace(".0.", ".2.")
            result[name], result[other] = tensors[other], tensors[name]
    return result


def nudged(*names: str, by: float = 1.01) -> Tensors:
    return {name: tensor * by if name in names else tensor for name, tensor in llama().items()}


def resized(rows: int) -> Tensors:
    return llama() | {
        "model.embed_tokens.weight": counting((6 + rows, 4), 1),
        "lm_head.weight": counting((6 + rows, 4), 3),
    }


def wrapped(prefix: str) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in llama().items()}


UP = "model.layers.1.mlp.up_proj.weight"
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("actual", "words"),
    [
        (llama(), ["It is the same base."]),
        (llama(dtype=torch.float32), ["It is the same base."]),
        (nudged(UP, Q), ["2 of 12 tensors differ", "layers.0.self_attn.q_proj.weight", "layers.1.mlp", "fine-tune of it?"]),
        (nudged(UP, by=-1.0), ["1 of 12 tensors differs", "unrelated"]),
        (nudged(*llama()), ["12 of 12 tensors differ", "…", "fine-tune of it?"]),
        (swapped(), ["permuted or repeated", "layers.0 holds the weights of layers.2", "layers.2 holds the weights of layers.0"]),
        (resized(3), ["vocabulary resized by +3", "from 6 to 9 rows", "same architecture"]),
        (resized(-2) | {UP: llama()[UP] * 1.01}, ["vocabulary resized by -2", "1 of 10 tensors differs", "fine-tune"]),
        (wrapped("policy."), ["prefix 'policy.'", "The same tensors"]),
        ({name.replace("mlp", "ffn"): tensor for name, tensor in llama().items()}, ["other names", "ffn", "mlp"]),
        (llama(layers=2), ["Another architecture", "3 of 12 expected tensors are missing", "layers.2."]),
        (llama(width=8), ["Another architecture", "10 have another shape", "[8] instead of [4]"]),
        ({"wte.weight": counting((6, 4), 1)}, ["Another architecture", "12 of 12", "1 are unknown"]),
        (llama() | {"score.weight": counting((2, 4), 5)}, ["1 tensor more (score.weight)", "same architecture"]),
        ({k: v for k, v in llama().items() if k != "lm_head.weight"}, ["1 tensor missing (lm_head.weight)"]),
        (llama() | {UP: llama()[UP].to(torch.float8_e4m3fn)}, ["F8_E4M3 instead of float", "quantized?"]),
        (llama() | {UP: torch.zeros(8, 4, dtype=torch.bfloat16)}, ["1 of 12 tensors differs", "unrelated"]),
    ],
)  # fmt: skip
def test_a_mismatch_becomes_a_sentence(actual: Tensors, words: list[str]) -> None:
    sentence = explain(actual)
    for word in words:
        assert word.lower() in sentence.lower(), sentence


def test_a_lost_prefix_is_seen_too() -> None:
    assert "without the prefix 'policy.'" in explain(llama(), wrapped("policy."))


def test_sketches_of_other_values_never_fail() -> None:
    strange = llama() | {UP: torch.full((8, 4), float("nan"), dtype=torch.bfloat16)}
    assert "differ" in explain(strange)
    assert "differ" in explain(llama(), strange)
