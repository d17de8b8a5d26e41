"""The routing card of a pack that is being built, from the folder of its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skillhub.devices import device_for
from skillhub.errors import UsageError
from skillhub.interop.modules import HERE_ALONE
from skillhub.progress import Progress
from skillhub.routing.cardmaking import CardReport, choose_prompts, make_card
from skillhub.routing.cards import RoutingCard, write_card
from skillhub.routing.contents import chat_text
from skillhub.routing.pooling import POOLING
from skillhub.routingcards import RouterInfo


def write_base_card(
    base: Path, prompts: Sequence[str], path: Path, *, name: str, progress: Progress | None = None
) -> tuple[RouterInfo, CardReport]:
    """Make a card and write it.

    Args:
        base: folder of the base model, with its config and tokenizer.
        prompts: what users of the pack might write.
        path: the card's file.
        name: what the manifest calls the file.
        progress: called with (``prompts``, done, all).

    Returns:
        What the manifest says of the card, and what was measured.

    Raises:
        UsageError: there are too few prompts, or the base cannot be loaded as a model with a tokenizer.
        DiskError: the disk is full or the folder may not be written.
    """
    choose_prompts(prompts)  # before anything is loaded
    model, tokenizer = load_reader(base)
    card, report = make_card(model, tokenizer, prompts, progress=progress)
    write_card(card, path)
    return router_info(card, tokenizer, name), report


def router_info(card: RoutingCard, tokenizer: Any, path: str) -> RouterInfo:
    """Return what a manifest says of a card."""
    return RouterInfo(
        path=path,
        layer=card.deepest,
        pooling=POOLING,
        template=None if card.markers is None else chat_text(tokenizer, "{}"),
        rank=card.rank,
        threshold=card.threshold,
    )


def load_reader(folder: Path) -> tuple[Any, Any]:
    """Load the part of a model that reads a prompt, without a head and in its own dtype, and its tokenizer; onto a GPU with room for it.

    Raises:
        UsageError: the folder holds no model of transformers with a tokenizer.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **HERE_ALONE)
        model: Any = AutoModel.from_pretrained(folder, dtype="auto", **HERE_ALONE)
    except Exception as error:  # a stranger's config or tokenizer may make transformers raise anything
        raise UsageError(
            f"{folder} could not be loaded as a model with a tokenizer, which routing cards need: {error}",
            hint="Give a base with config.json and a tokenizer, or leave the prompts out.",
        ) from error
    return model.to(device_for(model)).eval(), tokenizer
