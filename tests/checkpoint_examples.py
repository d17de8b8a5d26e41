"""Tiny checkpoints made of bit patterns, and a fingerprint computed from the definition by other means."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn, "BOOL": torch.bool,
}  # fmt: skip
TAGS = {dtype: tag for tag, dtype in DTYPES.items()}

Tensors = dict[str, torch.Tensor]


def tensor_of(dtype: str, shape: list[int], hexadecimal: str) -> torch.Tensor:
    """Return the tensor with the given little-endian bytes."""
    data = torch.frombuffer(bytearray.fromhex(hexadecimal) or bytearray(1), dtype=torch.uint8)
    return data[: len(hexadecimal) // 2].clone().view(DTYPES[dtype]).reshape(shape)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def counting(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Return distinct-looking numbers that every float dtype holds exactly: multiples of 1/64 below 2."""
    count = math.prod(shape)
    steps = (torch.arange(count) * 37 + seed * 101) % 251 - 125
    return (steps / 64).to(dtype).reshape(shape)


def llama(layers: int = 3, width: int = 4, vocabulary: int = 6, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """Return a checkpoint with Llama's names and an untied head."""
    tensors = {
        "model.embed_tokens.weight": counting((vocabulary, width), 1, dtype),
        "model.norm.weight": counting((width,), 2, dtype),
        "lm_head.weight": counting((vocabulary, width), 3, dtype),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.self_attn.q_proj.weight"] = counting((width, width), 10 + layer, dtype)
        tensors[f"{prefix}.mlp.up_proj.weight"] = counting((2 * width, width), 20 + layer, dtype)
        tensors[f"{prefix}.input_layernorm.weight"] = counting((width,), 30 + layer, dtype)
    return tensors


def save(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1) -> Path:
    """Write a checkpoint folder, in one file or in several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    if shards == 1:
        save_file({name: tensors[name].contiguous() for name in names}, folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]
        save_file({name: tensors[name].contiguous() for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    return folder


def defined_bytes(tensor: torch.Tensor) -> tuple[str, bytes]:
    """Return kind and canonical bytes by the definition, rounding with torch (float64 by exact integer ratios)."""
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return TAGS[tensor.dtype], bytes_of(tensor)
    if tensor.dtype == torch.float64:
        values = [_nearest_bfloat16(value) for value in tensor.flatten().tolist()]
        rounded = torch.tensor(values, dtype=torch.float64).to(torch.bfloat16)
    else:
        rounded = tensor.flatten().to(torch.float32).to(torch.bfloat16)
    rounded = torch.where(rounded == 0, torch.zeros_like(rounded), rounded)
    bits = rounded.view(torch.int16).clone()
    bits[rounded.isnan()] = 0x7FC0
    return "float", bits.numpy().tobytes()


def defined_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the fingerprint by the definition; names must be canonical and nothing left out."""
    text = hashlib.sha256(b"skb1:")
    for name in sorted(tensors, key=str.encode):
        kind, data = defined_bytes(tensors[name])
        shape = ",".join(str(size) for size in tensors[name].shape)
        for field in (name, shape, kind, hashlib.sha256(data).hexdigest()):
            text.update(len(field.encode()).to_bytes(8, "little"))
            text.update(field.encode())
    return f"skb1:{text.hexdigest()}"


def read_golden(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors of a golden file and what is expected of them."""
    golden = json.loads(path.read_text("utf-8"))
    tensors = {
        name: tensor_of(entry["dtype"], entry["shape"], entry["hex"]) for name, entry in golden["tensors"].items()
    }
    return tensors, golden["expected"]


def load(folder: Path) -> Tensors:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _nearest_bfloat16(value: float) -> float:
    """Return the bfloat16 nearest to a float64, ties to even, in exact arithmetic."""
    if value == 0 or math.isinf(value) or math.isnan(value):
        return value
    exponent = max(math.frexp(value)[1] - 1, -126)
    step = math.ldexp(1.0, exponent - 7)  # the quotient below is exact: a power of two scales
    nearest = round(value / step) * step
    return nearest if abs(nearest) < 2.0**128 else math.copysign(math.inf, value)
