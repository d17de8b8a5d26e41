"""What holds for every codec: any tensor goes through, the same bits come out everywhere, and damage does not crash a decoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skillhub.codecs import (
    EncodedTensor,
    allocation,
    decode,
    exact,
    lowrank,
    residual,
    restoration,
    rows,
    sign,
    sparse,
    zero,
)
from skillhub.errors import SkillhubError
from tests.codec_examples import read_golden, to_json, words
from tests.support.damage import every_codec
from tests.test_lowrank import large_components

ROOT = Path(__file__).parent.parent
TENSORS = every_codec()

LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.mT if tensor.dim() > 1 else tensor,
    "every other row": lambda tensor: tensor.repeat_interleave(2, dim=0)[::2] if tensor.dim() else tensor,
    "one row for all": lambda tensor: tensor[:1].expand(tensor.shape) if tensor.dim() and len(tensor) else tensor,
    "tied to another": lambda tensor: torch.cat([tensor, tensor])[: len(tensor)] if tensor.dim() else tensor,
}


def every_row(delta: torch.Tensor) -> EncodedTensor:
    return EncodedTensor(tuple(delta.shape), (rows.encode(delta, list(range(len(delta)))),))


ENCODERS: dict[str, Callable[[torch.Tensor], EncodedTensor]] = {
    "zero": lambda delta: zero.encode(tuple(delta.shape)),
    "exact": exact.encode,
    "sparse": lambda delta: EncodedTensor(tuple(delta.shape), (sparse.encode(delta),)),
    "residual": lambda delta: EncodedTensor(tuple(delta.shape), (residual.encode(delta, 0.01),)),
    "sign": lambda delta: EncodedTensor(tuple(delta.shape), (sign.encode(delta),)),
    "rows": lambda delta: every_row(delta) if delta.dim() and len(delta) else exact.encode(delta),
    "allocated": lambda delta: allocation.encode(allocation.analyse("x", delta), 1e-5, delta),
}
BIT_FOR_BIT = {"exact", "rows"}
FINITE_MATRICES = {"residual", "sign"}
"""What refuses everything else."""


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Return an fp32 tensor of any shape and layout, perhaps with values that are no numbers, infinite or tiny."""
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 5, 70]), max_size=3).map(tuple))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = torch.randn(shape, generator=generator) * 2.0 ** draw(st.integers(-20, 5))
    if draw(st.booleans()) and values.numel():
        odd = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0, 1e-42])
        values.view(-1)[torch.randint(0, values.numel(), (5,), generator=generator)] = odd
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](values)


@settings(max_examples=120)
@given(st.sampled_from(sorted(ENCODERS)), tensors())
def test_any_delta_goes_through_every_codec_or_is_refused(codec: str, delta: torch.Tensor) -> None:
    before = words(delta)
    try:
        encoded = ENCODERS[codec](delta)
    except ValueError:
        assert codec in FINITE_MATRICES and (delta.dim() < 2 or not bool(delta.isfinite().all()))
        return
    assert words(delta) == before
    decoded = decode(encoded)
    assert decoded.dtype == torch.float32 and decoded.shape == delta.shape and decoded.is_contiguous()
    if codec in BIT_FOR_BIT:
        assert words(decoded) == before
    elif codec == "sparse":
        assert words(decoded) == words(torch.where(delta == 0, 0.0, delta))
    elif delta.isfinite().all():
        assert bool(decoded.isfinite().all())


@settings(max_examples=60)
@given(
    tensors(),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.bool]),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64]),
    st.sampled_from([0.0, 1e-3]),
)
def test_any_tensor_is_restored_bit_for_bit_from_any_base(
    values: torch.Tensor, dtype: torch.dtype, base_dtype: torch.dtype, moved: float
) -> None:
    base = values.nan_to_num(0, 1, -1).to(base_dtype)
    tuned = (values + moved).to(dtype) if dtype.is_floating_point else values.nan_to_num(0, 1, -1).to(dtype)
    encoded = restoration.encode("x", tuned, base)
    assert words(decode(encoded, base)) == words(tuned)
    assert decode(encoded, base).dtype == dtype


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_flips_and_truncations_of_arrays_never_crash(name: str) -> None:
    encoded, base = TENSORS[name]
    draw = np.random.default_rng(len(name))
    for number, part in enumerate(encoded.parts):
        for key, data in part.arrays.items():
            cuts = [data[:size] for size in draw.permutation(data.size)[:60]]
            for other in (*(flipped(data, draw) for _ in range(120)), *cuts, np.concatenate([data, data[:1]])):
                parts = list(encoded.parts)
                parts[number] = replace(part, arrays={**part.arrays, key: other})
                try:
                    decoded = decode(EncodedTensor(encoded.shape, tuple(parts)), base)
                except SkillhubError:
                    continue
                assert decoded.shape == encoded.shape
                assert other.size >= data.size, "what was cut must be missed"


def flipped(data: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return the bytes with one of their bits changed."""
    other = data.copy()
    other[draw.integers(data.size)] ^= 1 << draw.integers(8)
    return other


PROGRAM = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(int(sys.argv[2]))
torch.set_float32_matmul_precision("medium")
from skillhub.codecs import decode, decoded_digest
from skillhub.deltareaders import reader_of
from tests.codec_examples import from_json

for name, (tensor, base) in json.load(sys.stdin).items():
    encoded = from_json(tensor)
    decoded = decode(encoded, None if base is None else decode(from_json(base)))
    print(name, decoded_digest(decoded))
    if encoded.operation == "add" and encoded.shape:
        reader = reader_of(encoded)
        for size in (1, 7):
            pieces = [reader.read(row, row + size) for row in range(0, reader.shape[0], size)]
            assert not pieces or decoded_digest(torch.cat(pieces)) == decoded_digest(decoded), name
"""

OLD_CPU = {
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "ATEN_CPU_CAPABILITY": "default",
    "OPENBLAS_CORETYPE": "Sandybridge",
    "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
    "NUMBA_CPU_NAME": "x86-64",
}


def tensors_as_json() -> dict[str, Any]:
    """Return every tensor that promises its bits, with its base: examples, golden ones, and one whose sums are long."""
    cases: dict[str, Any] = {}
    for name, (encoded, base) in TENSORS.items():
        if name != "factors":
            cases[name] = to_json(encoded), None if base is None else to_json(exact.encode(base, operation="set"))
    for name in ("exact", "lowrank", "lowrank_adaptive", "lowrank_lines", "residual", "rows", "sign", "sparse", "zero"):
        cases |= {f"{name} {case['case']}": (case["encoded"], None) for case in read_golden(name)}
    return cases | {"long": (to_json(EncodedTensor((700, 523), (lowrank.encode(large_components()),))), None)}


def test_bits_are_the_same_for_threads_rows_and_instruction_sets() -> None:
    cases, printed = tensors_as_json(), set()
    for threads, variables in (("1", {}), ("2", {}), ("1", OLD_CPU)):
        counts = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        command = [sys.executable, "-c", PROGRAM, str(ROOT), threads]
        environment = os.environ | counts | variables
        done = subprocess.run(
            command, env=environment, input=json.dumps(cases), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        printed.add(done.stdout)
    assert len(printed) == 1 and printed.pop().count("\n") == len(cases)


BOMBS = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
import numpy as np
from skillhub.codecs import EncodedPart, EncodedTensor, decode
from skillhub.errors import SkillhubError
from tests.support.damage import every_codec

tensors = every_codec()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
LARGE = [10**4, 2**31 - 1, 2**32, 2**33, 2**63, 10**30]

def hostile(config):
    for key, value in config.items():
        if type(value) is int:
            yield from ({**config, key: large} for large in LARGE)
        elif isinstance(value, list):
            yield from ({**config, key: [large] * len(value)} for large in LARGE)
            yield from ({**config, key: [[large, 0]] * len(value)} for large in LARGE)
            yield {**config, key: [0] * len(value)}
            yield {**config, key: value * 10**5}

for name, (encoded, base) in tensors.items():
    for number, part in enumerate(encoded.parts):
        tries = [(encoded.shape, config, part.arrays) for config in hostile(part.config)]
        shapes = ((2**16, 2**16), (2**33,), (2**33, 0), (2**20, 2**13), (1, 2**33))
        tries += [(shape, part.config, part.arrays) for shape in shapes]
        empty = {key: [0] * len(value) if key == "frames" else value for key, value in part.config.items()}
        for size in (0, 1, 5, 30):
            tries.append((encoded.shape, empty, {key: data[:size] for key, data in part.arrays.items()}))
        for shape, config, arrays in tries:
            parts = list(encoded.parts)
            parts[number] = replace(part, config=config, arrays=arrays)
            try:
                decoded = decode(EncodedTensor(shape, tuple(parts)), base)
            except SkillhubError as error:
                assert error.message and error.hint
            else:
                assert decoded.numel() < 2**25, (name, shape, config)
print("refused")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of memory are Linux's")
def test_claims_of_huge_sizes_are_refused_before_memory_is_taken() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(ROOT)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "refused\n", done.stderr
