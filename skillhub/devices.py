"""Where models run and weights are merged: on a GPU where there is one with room for it, else on the CPU."""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from skillhub.errors import UsageError

_MEMORY_FILE = Path("/proc/meminfo")

_ROOM = 2 << 30
"""Bytes of a GPU's memory that merging may take, to be on the safe side."""


def available_bytes(device: torch.device) -> int | None:
    """Return how much memory a device has left; None where that is unknown."""
    if device.type == "cuda":  # what torch holds and nobody uses is there, too
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu":
        return None
    if _MEMORY_FILE.is_file():
        for line in _MEMORY_FILE.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def device_with(needed: float) -> torch.device:
    """Return the GPU that this process is to use where it has so many bytes left, else the CPU.

    Under ``torchrun`` each process has its own GPU, as far as there are so many.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        left = available_bytes(found)
    except RuntimeError:  # others have taken all of it
        return torch.device("cpu")
    return found if left is not None and left >= needed else torch.device("cpu")


def give_memory_back() -> None:
    """Give memory back that nothing uses any more: models that refer to themselves, and what the C library keeps of freed tensors.

    On a real model glibc kept twice the weights' size, on top of which the next step took what it needs.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc has this
        ctypes.CDLL(None).malloc_trim(0)


def device_for(model: nn.Module, *, room: float = 1.2) -> torch.device:
    """Return the device that a model which was loaded into CPU memory is to run on.

    Args:
        model: the model.
        room: what running it takes, in sizes of its weights.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return device_with(room * sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def choose_device(device: str) -> torch.device:
    """Return where chunks are merged.

    Args:
        device: ``auto`` (a CUDA device where there is one with 2 GB left, each local rank its own; else the CPU), or the name of one.

    Raises:
        UsageError: there is no such device.
    """
    if device == "auto":
        return device_with(_ROOM)
    try:
        found = torch.device(device)
        torch.empty(1, device=found).cpu()  # from the device "meta" nothing comes back
    except Exception as error:  # each kind of device has its own way to say so
        raise UsageError(f"There is no device {device!r} here.", hint="Use auto, cpu or cuda.") from error
    return found
