"""The models that calibration runs: a fine-tune with a tokenizer, from the folders of a pack's author."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from skillhub.devices import device_for
from skillhub.errors import UsageError
from skillhub.interop.modules import HERE_ALONE


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
        UsageError: it cannot be loaded as a model with a tokenizer.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    folder = tuned.parent if tuned.is_file() else tuned
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    try:
        config = AutoConfig.from_pretrained(folder, **HERE_ALONE)
        tokenizer = AutoTokenizer.from_pretrained(folder if has_tokenizer else base, **HERE_ALONE)
        generates = any("CausalLM" in name or "LMHead" in name for name in config.architectures or ())
        kind: Any = AutoModelForCausalLM if generates else AutoModel
        model: Any = kind.from_pretrained(folder, dtype=dtype or "auto", **HERE_ALONE)
    except Exception as error:  # a stranger's config or tokenizer may make transformers raise anything
        raise UsageError(
            f"{tuned} could not be loaded as a model with a tokenizer, which calibration needs: {error}",
            hint="Give a fine-tune with config.json and a tokenizer, or leave the prompts out.",
        ) from error
    model.requires_grad_(False)
    return model.to(device_for(model, room=room)).eval(), tokenizer, generates
