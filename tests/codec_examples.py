"""Encoded tensors as JSON (golden files), and small helpers that the codec tests share."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skillhub.codecs import EncodedPart, EncodedTensor

GOLDEN = Path(__file__).parent / "golden"


def to_json(encoded: EncodedTensor) -> dict[str, Any]:
    return {
        "shape": list(encoded.shape),
        "parts": [
            {
                "codec": part.codec,
                "config": part.config,
                "arrays": {name: base64.b64encode(array.tobytes()).decode() for name, array in part.arrays.items()},
            }
            for part in encoded.parts
        ],
    }


def from_json(value: dict[str, Any]) -> EncodedTensor:
    parts = tuple(
        EncodedPart(
            part["codec"],
            part["config"],
            {name: np.frombuffer(base64.b64decode(text), np.uint8) for name, text in part["arrays"].items()},
        )
        for part in value["parts"]
    )
    return EncodedTensor(tuple(value["shape"]), parts)


def words(tensor: torch.Tensor) -> bytes:
    """The bits of a tensor, for comparisons that see NaN payloads and the sign of zero."""
    flat = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def read_golden(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((GOLDEN / f"codec_{name}.json").read_text())
    return cases


def write_golden(name: str, cases: dict[str, tuple[EncodedTensor, torch.Tensor]]) -> None:
    """Write a golden file once; one that exists is the format and stays."""
    rows = [
        {"case": case, "encoded": to_json(encoded), "dtype": str(decoded.dtype), "decoded": words(decoded).hex()}
        for case, (encoded, decoded) in cases.items()
    ]
    with (GOLDEN / f"codec_{name}.json").open("x", encoding="utf-8") as file:
        file.write(json.dumps(rows, indent=1) + "\n")
