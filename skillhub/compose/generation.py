"""Loading a model, and asking a causal one something; greedy, with the model's own chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from skillhub.bases import locate_base
from skillhub.calibration.models import has_tokenizer, names_head
from skillhub.devices import device_for
from skillhub.errors import UsageError
from skillhub.interop.modules import HERE_ALONE


def load_model(
    base: str | Path,
    *,
    encoder: bool = False,
    threads: int | None = None,
    room: float = 1.2,
    tokenizer_of: str | Path | None = None,
) -> tuple[Any, Any]:
    """Load a model in its own dtype, on a GPU when there is one with room for it.

    Args:
        base: a checkpoint folder or ``repo[@revision]``.
        encoder: load it without a head, instead of as a causal language model.
        threads: for torch on the CPU; None leaves torch's choice.
        room: memory that what follows takes, in sizes of the model's weights.
        tokenizer_of: the folder or repository whose tokenizer it gets; by default its own.

    Returns:
        The model (in evaluation mode) and its tokenizer.

    Raises:
        UsageError: the checkpoint is no such model, or has no tokenizer.
        NotFoundError: there is no such folder or repository.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    folder = locate_base(base)
    tokenizer_folder = folder if tokenizer_of is None else locate_base(tokenizer_of)
    if threads:
        torch.set_num_threads(threads)
    kind: Any = AutoModel if encoder else AutoModelForCausalLM
    try:
        if not encoder:
            _check_generates(base, AutoConfig.from_pretrained(folder, **HERE_ALONE))
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, **HERE_ALONE)
        model: Any = kind.from_pretrained(folder, dtype="auto", **HERE_ALONE)
    except UsageError:
        raise
    except Exception as error:  # a stranger's config or tokenizer may make transformers raise anything
        what = "an encoder" if encoder else "a causal language model"
        raise UsageError(
            f"{base} could not be loaded as {what} with a tokenizer: {error}",
            hint="`skillhub run`, and `evaluate` with prompts and answers, need a causal language model; `evaluate` with pairs "
            "an encoder. For other models use skillhub.graft(model, packs).",
        ) from error
    return model.to(device_for(model, room=room)).eval(), tokenizer


def load_tokenizer(source: str | Path) -> tuple[Any, Any]:
    """Return the tokenizer of a folder or repository, and the part of its config that is about text.

    Raises:
        UsageError: there is no tokenizer or config that can be read.
        NotFoundError: there is no such folder or repository.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = locate_base(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **HERE_ALONE)
        config = AutoConfig.from_pretrained(folder, **HERE_ALONE)
    except Exception as error:  # a stranger's config or tokenizer may make transformers raise anything
        raise UsageError(
            f"The tokenizer of {source} could not be loaded: {error}", hint="Put its files beside config.json."
        ) from error
    return tokenizer, config.get_text_config()


def choose_tokenizer(base: str | Path, tuned: str | Path | None) -> tuple[Any, int | None]:
    """Return the tokenizer by which a base and its fine-tune are to read the same, and how many tokens the base takes, where it says so.

    It is the fine-tune's, where it has one and the base knows all of its tokens; else the base's.

    Raises:
        UsageError, NotFoundError: as :func:`load_tokenizer`.
    """
    tokenizer, config = load_tokenizer(base)
    if tuned is not None and has_tokenizer(locate_base(tuned)):
        own, _ = load_tokenizer(tuned)
        tokenizer = own if len(own) <= getattr(config, "vocab_size", 0) else tokenizer
    return tokenizer, getattr(config, "max_position_embeddings", None)


def predicts_tokens(folder: Path) -> bool:
    """Say whether a checkpoint's config names no architecture, or one with a head that predicts tokens.

    Raises:
        UsageError: there is no config that can be read.
    """
    from transformers import AutoConfig

    try:
        return _is_generating(AutoConfig.from_pretrained(folder, **HERE_ALONE))
    except Exception as error:  # a stranger's config may make transformers raise anything
        raise UsageError(
            f"The config of {folder} could not be read: {error}", hint="Put a config.json beside the weights."
        ) from error


def _is_generating(config: Any) -> bool:
    return not getattr(config, "architectures", None) or names_head(config)


def _check_generates(base: str | Path, config: Any) -> None:
    """Refuse a checkpoint without a head that predicts tokens; transformers would make up a random one."""
    if not _is_generating(config):
        raise UsageError(
            f"{base} is an encoder ({', '.join(config.architectures)}) and cannot write text.",
            hint="`skillhub run`, and `evaluate` with prompts and answers, are for language models. Use "
            "skillhub.graft(model, packs), or `evaluate` with rows of a and b.",
        )


def respond(model: Any, tokenizer: Any, prompt: str, *, max_new_tokens: int) -> str:
    """Return the model's greedy answer to one prompt, without special tokens.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; its chat template is used when it has one.
        prompt: what the user says.
        max_new_tokens: at most so many tokens are generated.
    """
    if tokenizer.chat_template:
        message = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    inputs = inputs.to(model.device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(answer).strip()
