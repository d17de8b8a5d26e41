"""The models that calibration runs: a fine-tune with a tokenizer, from the folders of a pack's author."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from skillhub.devices import device_for
from skillhub.errors import UsageError
from skillhub.interop.modules import HERE_ALONE

_HEADS = re.compile("CausalLM|ConditionalGeneration|LMHead|DoubleHeads")
"""What names of classes with a head that predicts tokens contain."""


def names_head(config: Any) -> bool:
    """Say whether a config names a class with a head that predicts tokens."""
    return any(_HEADS.search(name) for name in getattr(config, "architectures", None) or ())


def has_tokenizer(folder: Path) -> bool:
    """Say whether a checkpoint, a folder or a file in one, has a tokenizer beside it."""
    folder = folder.parent if folder.is_file() else folder
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def load_model(tuned: Path, base: Path, *, room: float, dtype: torch.dtype | None = None) -> tuple[Any, Any, bool]:
    """Load a fine-tune for reading, without gradients of its weights, on a GPU that has room for it.

    Args:
        tuned: folder of the fine-tune, with its config, or its file of weights there.
        base: folder of its base, whose tokenizer is taken where the fine-tune has none.
        room: what running it takes, in sizes of its weights.
        dtype: of its weights; None for their own.

    Returns:
        The model, its tokenizer, and whether it predicts tokens.

    Raises:
        UsageError: it cannot be loaded as a model with a tokenizer, or is an encoder with a decoder.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    folder = tuned.parent if tuned.is_file() else tuned
    try:
        config = AutoConfig.from_pretrained(folder, **HERE_ALONE)
        _check_kind(tuned, config)
        tokenizer = AutoTokenizer.from_pretrained(folder if has_tokenizer(folder) else base, **HERE_ALONE)
        generates = names_head(config)
        kind: Any = AutoModelForCausalLM if generates else AutoModel
        model: Any = kind.from_pretrained(folder, dtype=dtype or "auto", **HERE_ALONE)
    except UsageError:
        raise
    except Exception as error:  # a stranger's config or tokenizer may make transformers raise anything
        raise UsageError(
            f"{tuned} could not be loaded as a model with a tokenizer, which calibration needs: {error}",
            hint="Give a fine-tune with config.json and a tokenizer, or leave the prompts out.",
        ) from error
    model.requires_grad_(False)
    return model.to(device_for(model, room=room)).eval(), tokenizer, generates


def _check_kind(tuned: Path, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"{tuned} is an encoder with a decoder, which calibration does not read.",
            hint="Pack it without: --no-calibration (calibrate=False).",
        )
