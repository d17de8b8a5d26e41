"""Which positions of a prompt are pooled, and what pooling gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from skillhub.errors import UsageError
from skillhub.routing.background import background_digest, background_kinds, background_prompts
from skillhub.routing.contents import ChatMarkers, chat_markers, chat_text, find_content
from skillhub.routing.decisions import Prefill
from skillhub.routing.pooling import pooled_states
from tests.routing_examples import add_byte_tokenizer, save_base
from tests.support.tiny_models import load_model, make_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("routing") / "base")


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


def content_of(tokenizer: Any, text: str) -> str:
    ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
    found = find_content(ids, None, chat_markers(tokenizer))
    return str(tokenizer.decode(ids[0][found[0]]))


def test_the_content_is_the_last_message_of_the_user(tokenizer: Any) -> None:
    assert chat_text(tokenizer, "hello") == "<user>be kind<end><user>hello<end><bot>"
    for prompt in ("hello", "a", "two\nlines\n", "12 + 30", "ünï"):
        assert content_of(tokenizer, chat_text(tokenizer, prompt)) == prompt
    talk = [{"role": "user", "content": "one"}, {"role": "bot", "content": "two"}, {"role": "user", "content": "three"}]
    assert (
        content_of(tokenizer, tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
        == "three"
    )


def test_without_the_template_all_of_it_is_content(tokenizer: Any) -> None:
    assert content_of(tokenizer, "no template here") == "no template here"
    assert content_of(tokenizer, "<bot>an answer<end>") == "<bot>an answer<end>"
    assert content_of(tokenizer, "<user>") == "<user>"  # nothing stands after it


def test_a_tokenizer_without_template_has_no_markers(tmp_path: Path) -> None:
    add_byte_tokenizer(tmp_path, None)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert chat_markers(plain) is None
    with pytest.raises(UsageError, match="no chat template"):
        chat_text(plain, "hello")


def by_hand(row: list[int], attended: list[int], markers: ChatMarkers | None) -> list[bool]:
    """Find the content with loops."""
    inside = [bool(one) for one in attended]
    if markers is None or not markers.before:
        return inside
    before, after = list(markers.before), list(markers.after)
    starts = [
        end for end in range(len(before), len(row) + 1) if row[end - len(before) : end] == before and attended[end - 1]
    ]
    if not starts:
        return inside
    start = starts[-1]
    stops = [at for at in range(start, len(row) - len(after) + 1) if row[at : at + len(after)] == after]
    stop = stops[0] if stops and after else len(row)
    found = [bool(attended[at]) and start <= at < stop for at in range(len(row))]
    return found if any(found) else inside


MARKERS = st.none() | st.builds(
    ChatMarkers,
    st.lists(st.integers(0, 2), max_size=3).map(tuple),
    st.lists(st.integers(0, 2), max_size=2).map(tuple),
)


@given(st.data(), MARKERS)
@settings(max_examples=300)
def test_content_is_what_a_search_by_hand_finds(data: st.DataObject, markers: ChatMarkers | None) -> None:
    length = data.draw(st.integers(1, 10))
    rows = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=length, max_size=length), min_size=1, max_size=3))
    padding = [data.draw(st.integers(0, length - 1)) for _ in rows]
    left = data.draw(st.booleans())
    masks = [[0] * cut + [1] * (length - cut) if left else [1] * (length - cut) + [0] * cut for cut in padding]
    found = find_content(torch.tensor(rows), torch.tensor(masks), markers)
    assert found.tolist() == [by_hand(row, mask, markers) for row, mask in zip(rows, masks, strict=True)]


@pytest.mark.parametrize("left", [False, True])
def test_pooling_is_the_mean_of_the_hidden_states_whatever_the_padding(base: Path, tokenizer: Any, left: bool) -> None:
    model = load_model(base).float()
    texts = [chat_text(tokenizer, text) for text in ("a", "seventeen", "what is this?")]
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    width = max(map(len, rows))
    pads = [[4] * (width - len(row)) for row in rows]
    ids = torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)])
    ones = [[1] * len(row) for row in rows]
    zeros = [[0] * len(pad) for pad in pads]
    mask = torch.tensor([no + yes if left else yes + no for yes, no in zip(ones, zeros, strict=True)])
    pooled = pooled_states(Prefill(model, ids, mask), [1, 2], chat_markers(tokenizer))
    for place, text in enumerate(("a", "seventeen", "what is this?")):
        with torch.no_grad():
            states = model(torch.tensor([rows[place]]), output_hidden_states=True).hidden_states
        end = len(rows[place]) - 2
        for layer in (1, 2):
            expected = states[layer][0, end - len(text) : end].mean(0)
            assert torch.allclose(pooled[layer - 1, place], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "gemma", "t5", "mixtral", "qwen3"])
def test_pooling_works_for_every_kind_of_model_and_leaves_no_hooks(kind: str) -> None:
    model = make_model(kind, dtype=torch.float32)
    pooled = pooled_states(Prefill(model, torch.tensor([[5, 6, 7], [8, 9, 10]])), [0, 1], None)
    assert pooled.shape == (2, 2, 16) and pooled.isfinite().all()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_embeddings_are_pooled_as_bare_text() -> None:
    model = make_model("llama", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    given_ids = pooled_states(Prefill(model, ids), [1], None)
    embedded = pooled_states(
        Prefill(model, inputs_embeds=model.get_input_embeddings()(ids)), [1], ChatMarkers((5,), (7,))
    )
    assert torch.allclose(given_ids, embedded)


def test_the_background_is_varied_and_nothing_comes_twice() -> None:
    kinds, prompts = background_kinds(), background_prompts()
    assert {"chat", "code", "maths", "tasks", "languages", "passages", "documents", "short"} == set(kinds)
    assert len(prompts) == len(set(prompts)) > 400 and all(prompt == prompt.strip() for prompt in prompts)
    assert any("\n" in prompt for prompt in kinds["code"]) and not any("\\n" in prompt for prompt in kinds["chat"])
    assert len(background_digest()) == 64
