"""Compiled loops: numba checks no index in them unless asked to, so here it is asked to, with whole and damaged streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import torch
from dataclasses import replace
from skillhub.codecs import ans, arithmetic, decode
from skillhub.errors import SkillhubError
from skillhub.rounding import round_to
from tests.codec_examples import from_json, read_golden

draw = np.random.default_rng(0)
refused = 0


def attempt(function, *arguments, **options):
    global refused
    try:
        function(*arguments, **options)
    except SkillhubError:
        refused += 1


def damaged(data):
    data = data.copy()
    for _ in range(draw.integers(1, 4)):
        if data.size:
            data[draw.integers(data.size)] = draw.integers(256)
    return data[: data.size - draw.integers(3)] if draw.random() < 0.2 else data


for spread in (0.1, 1.0, 20.0, 300.0):
    for shape in ((0, 5), (5, 0), (1, 1), (3, 50), (20, 30)):
        codes = np.clip(np.rint(draw.normal(size=shape) * spread), -255, 255).astype(np.int16)
        stream = arithmetic.encode(codes)
        assert np.array_equal(arithmetic.decode(stream, *shape)[0], codes)
        assert arithmetic.measure(codes).size == shape[0]
        for _ in range(100):
            attempt(arithmetic.decode, damaged(stream), *shape)
    count = int(draw.integers(1, 3000))
    contexts = draw.integers(0, 7, count).astype(np.uint8)
    symbols = np.clip(np.rint(draw.normal(size=count) * spread) + 30, 0, 59).astype(np.uint8)
    known = {"alphabet": 60, "context_count": 7}
    stream = ans.encode(symbols, contexts, **known)
    assert np.array_equal(ans.decode(stream, count, contexts, **known), symbols)
    for _ in range(200):
        attempt(ans.decode, damaged(stream), count, contexts, **known)
for name in ("lowrank_adaptive", "lossless"):
    for case in read_golden(name):
        encoded = from_json(case["encoded"])
        known = encoded.parts[-1].config.get("base_dtype", "float32")
        base = torch.zeros(encoded.shape, dtype=getattr(torch, known))
        for _ in range(60):
            last = encoded.parts[-1]
            arrays = {key: damaged(array) for key, array in last.arrays.items()}
            other = replace(encoded, parts=(*encoded.parts[:-1], replace(last, arrays=arrays)))
            attempt(decode, other, base)
for size in (0, 1, 2, 3, 1000, 1001):
    for offset in (0, 1, 2**33 - 1, 2**33 + 7):
        for values in (torch.randn(size), torch.full((size,), float("nan")), torch.full((size,), -3.39e38)):
            round_to(torch.bfloat16, values, key=2**64 - 1, offset=offset)
print(refused)
"""


def test_no_index_is_outside_its_array(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


def test_a_full_disk_keeps_nobody_from_running_what_was_translated(tmp_path: Path) -> None:
    program = (
        "import resource, signal, numpy\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))\n"
        "from skillhub.codecs.arithmetic import decode, encode\n"
        "for _ in range(2):\n"
        "    assert decode(encode(numpy.eye(3, dtype=numpy.int16)), 3, 3)[0].sum() == 3\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
