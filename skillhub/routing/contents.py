"""What a prompt is about, without its wrapping: the positions of the user's last message in a chat template.

Two skills that share a chat template must not look alike by it, and a pack must fit whether or not a system message stands before
the question. So states are pooled over the content alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from skillhub.errors import UsageError

_PROBE = "probe"


@dataclass(frozen=True)
class ChatMarkers:
    """The token ids between which a chat template puts what the user says.

    Attributes:
        before: the ids right before a user's message, from the last special token on; empty where it follows nothing.
        after: the ids right after it, to the first special token; empty where nothing follows.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def chat_markers(tokenizer: Any) -> ChatMarkers | None:
    """Return the markers of a tokenizer's chat template, or None where it has no template (or one without such a place)."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    text = str(chat_text(tokenizer, _PROBE))
    before, found, after = text.rpartition(_PROBE)
    if not found or not (before or after):
        return None
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)} - {""}
    start = max((before.rfind(token) for token in special), default=-1)
    ends = [after.find(token) + len(token) for token in special if token in after]
    return ChatMarkers(_ids(tokenizer, before[max(start, 0) :]), _ids(tokenizer, after[: min(ends)] if ends else after))


def chat_text(tokenizer: Any, prompt: str) -> str:
    """Return a prompt as the one message of a user, ready for the answer.

    Raises:
        UsageError: the tokenizer has no chat template, or one that fails.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("The tokenizer has no chat template.", hint="Use --template none.")
    message = [{"role": "user", "content": prompt}]
    try:
        return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # it is a program of a stranger's
        raise UsageError(
            f"The chat template of the base cannot be used: {error}.", hint="Correct it, or remove it from the base."
        ) from error


def find_content(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, markers: ChatMarkers | None
) -> torch.Tensor:
    """Return which positions hold the content of each row.

    That is what stands between the last ``before`` and the first ``after`` that follows. A row without them is content from end to
    end, its first token included: attention makes that one's state huge, but it may be the word that tells what is wanted.

    Args:
        input_ids: (rows, length).
        attention_mask: (rows, length), 0 at padding; None without padding.
        markers: of the chat template; None takes all rows as bare text.

    Returns:
        (rows, length) bool, on the CPU.
    """
    ids = input_ids.cpu()
    attended = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
    if markers is None or not markers.before:
        return attended
    places = torch.arange(ids.shape[1]).expand_as(ids)
    starts = _ends_of(ids, markers.before) & attended
    start = torch.where(starts, places, -1).amax(1, keepdim=True)
    after = places > start
    stops = torch.roll(_ends_of(ids, markers.after), 1 - len(markers.after), 1) & after if markers.after else None
    stop = ids.shape[1] if stops is None else torch.where(stops, places, ids.shape[1]).amin(1, keepdim=True)
    inside = after & (places < stop) & attended
    return torch.where((start >= 0) & inside.any(1, keepdim=True), inside, attended)


def _ends_of(ids: torch.Tensor, wanted: Sequence[int]) -> torch.Tensor:
    """Return where a sequence of ids ends in each row: (rows, length) bool."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    if len(wanted) <= ids.shape[1]:
        windows = ids.unfold(1, len(wanted), 1)
        found[:, len(wanted) - 1 :] = (windows == torch.tensor(wanted, dtype=ids.dtype)).all(2)
    return found


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)
