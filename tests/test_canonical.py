from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillhub.canonical import canonical_names, is_buffer, is_vocabulary_tensor, tied_aliases

NAMES = st.lists(
    st.lists(st.sampled_from(["model", "transformer", "bert", "a", "wte", "weight"]), min_size=1, max_size=4).map(".".join),
    unique=True,
)  # fmt: skip


def canonical(*names: str) -> dict[str, str]:
    return canonical_names(dict.fromkeys(names, (2, 2)))


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        (("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"), ("embed_tokens.weight", "norm.weight", "lm_head.weight")),
        (("transformer.wte.weight", "transformer.h.0.ln_1.bias"), ("wte.weight", "h.0.ln_1.bias")),
        (("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"), ("embeddings.word_embeddings.weight", "cls.predictions.bias")),
        (
            ("distilbert.embeddings.word_embeddings.weight", "distilbert.transformer.layer.0.ffn.weight"),
            ("embeddings.word_embeddings.weight", "transformer.layer.0.ffn.weight"),
        ),
        (("shared.weight", "encoder.block.0.w", "decoder.block.0.w"), ("shared.weight", "encoder.block.0.w", "decoder.block.0.w")),
        (("vit.layers.0.weight", "classifier.weight"), ("layers.0.weight", "classifier.weight")),
    ],
)  # fmt: skip
def test_one_wrapper_is_dropped(wrapped: tuple[str, ...], plain: tuple[str, ...]) -> None:
    assert tuple(canonical(*wrapped)[name] for name in wrapped) == plain
    assert tuple(canonical(*plain)[name] for name in plain) == plain


def test_a_name_that_is_taken_keeps_its_wrapper() -> None:
    names = canonical("model.wte.weight", "wte.weight", "model.norm.weight")
    assert names["model.wte.weight"] == "model.wte.weight"
    assert names["model.norm.weight"] == "norm.weight"


@given(names=NAMES)
def test_canonical_names_are_unique(names: list[str]) -> None:
    result = canonical(*names)
    assert set(result) == set(names)
    assert len(set(result.values())) == len(names)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.rotary_emb.inv_freq", (8,), True),
        ("bert.embeddings.position_ids", (1, 512), True),
        ("h.0.attn.bias", (1, 1, 1024, 1024), True),
        ("h.0.attn.bias", (1024,), False),
        ("h.0.attn.c_attn.bias", (1, 1, 4, 4), False),
        ("h.0.attn.masked_bias", (), True),
        ("batch_norm.num_batches_tracked", (), False),
    ],
)
def test_listed_buffers_are_left_out(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert is_buffer(name, shape) is expected
    assert (name not in canonical_names({name: shape})) is expected


@pytest.mark.parametrize(
    ("alias", "original"),
    [
        ("lm_head.weight", "embed_tokens.weight"),
        ("lm_head.weight", "wte.weight"),
        ("lm_head.weight", "language_model.embed_tokens.weight"),
        ("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("lm_head.decoder.bias", "lm_head.bias"),
        ("vocab_projector.weight", "embeddings.word_embeddings.weight"),
        ("embed_out.weight", "embed_in.weight"),
        ("encoder.embed_tokens.weight", "shared.weight"),
        ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight"),
    ],
)
def test_tied_aliases_are_recognised_by_content(alias: str, original: str) -> None:
    assert aliases({alias: 1, original: 1, "other.weight": 1}) == {alias: original}
    assert aliases({alias: 1, original: 2}) == {}


def aliases(contents: dict[str, int]) -> dict[str, str]:
    return tied_aliases(contents, lambda first, second: contents[first] == contents[second])


def test_all_of_t5s_aliases_point_to_the_shared_embedding() -> None:
    names = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
    assert aliases(dict.fromkeys(names, 1)) == dict.fromkeys(names[1:], "shared.weight")
    untied_head = {**dict.fromkeys(names, 1), "lm_head.weight": 2}
    assert aliases(untied_head) == dict.fromkeys(names[1:3], "shared.weight")


def test_vocabulary_tensors() -> None:
    assert all(map(is_vocabulary_tensor, ["wte.weight", "lm_head.weight", "lm_head.bias", "cls.predictions.bias"]))
    assert not any(
        map(is_vocabulary_tensor, ["h.0.attn.c_attn.bias", "norm.weight", "embeddings.position_embeddings.weight"])
    )
