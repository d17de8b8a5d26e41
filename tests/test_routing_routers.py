"""Routers beside that by cards: prototypes of the weights, a trained classifier, and which of them is chosen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from skillhub.errors import UsageError, WrongBaseError
from skillhub.layout import layout_of
from skillhub.packdeltas import open_delta
from skillhub.packer import pack
from skillhub.packs import Pack
from skillhub.routing import find_router
from skillhub.routing.arrow import ArrowRouter, find_prototypes, make_arrow, measure_fits, top_right_vectors
from skillhub.routing.cardmaking import encode, prefill_of
from skillhub.routing.cardrouter import CardRouter
from skillhub.routing.classifier import train_classifier
from skillhub.routing.contents import ChatMarkers, chat_text
from skillhub.routing.decisions import Prefill
from tests.routing_examples import add_byte_tokenizer, save_base, shouts, sums, tuned
from tests.support.tiny_models import build_pack, load_model, make_model, rewrite
from tests.test_routing_cards import METADATA


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("routers") / "base")


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return load_model(base)


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def bare_pack(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder = tmp_path_factory.mktemp("bare")
    return build_pack(tuned(base, folder / "tuned", 2), base, folder / "pack", name="bare-pack")


@pytest.fixture(scope="module")
def carded_pack(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder = tmp_path_factory.mktemp("carded")
    return pack(tuned(base, folder / "tuned", 1), base, folder / "pack", metadata=METADATA, prompts=sums(32))


def test_auto_takes_cards_where_every_pack_has_one(model: Any, carded_pack: Pack) -> None:
    told: list[str] = []
    router = find_router({"sums-pack": open_delta(carded_pack)}, model, notice=told.append)
    assert isinstance(router, CardRouter) and list(router.cards) == ["sums-pack"] and told == []


def test_a_card_for_a_deeper_model_is_refused_with_its_pack_s_name(carded_pack: Pack) -> None:
    with pytest.raises(WrongBaseError, match="card of sums-pack judges the layer 2, and the model has 2"):
        find_router({"sums-pack": open_delta(carded_pack)}, make_model("tied", num_hidden_layers=2))


def test_a_long_text_is_not_read_to_its_end(tokenizer: Any) -> None:
    begun = time.process_time()
    assert encode(tokenizer, "word " * 2_000_000, is_chat=False) == encode(tokenizer, "word " * 500, is_chat=False)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("template", ["{% for", "{{ 1 / 0 }}", "{{ raise_exception('no') }}", "{{ messages[5].x.y }}"])
def test_a_chat_template_that_fails_is_told(template: str, tmp_path: Path) -> None:
    add_byte_tokenizer(tmp_path, template)
    with pytest.raises(UsageError, match="chat template of the base cannot be used"):
        chat_text(AutoTokenizer.from_pretrained(tmp_path), "a")


def test_auto_takes_the_weights_where_one_has_none_and_says_so(
    model: Any, tokenizer: Any, carded_pack: Pack, bare_pack: Pack
) -> None:
    told: list[str] = []
    deltas = {"first": open_delta(carded_pack), "second": open_delta(bare_pack)}
    router = find_router(deltas, model, tokenizer=tokenizer, notice=told.append)
    assert isinstance(router, ArrowRouter) and list(router.prototypes) == ["first", "second"]
    assert len(told) == 1 and "second has none" in told[0] and "first" not in told[0]


def test_without_a_tokenizer_the_weights_never_abstain_and_that_is_said(bare_pack: Pack, base: Path) -> None:
    told: list[str] = []
    made = load_model(base)
    made.config._name_or_path = made.name_or_path = ""
    router = find_router({"bare-pack": open_delta(bare_pack)}, made, notice=told.append)
    assert "Without a tokenizer" in told[0]
    decision = router.route(Prefill(made, torch.randint(5, 261, (4, 9), generator=torch.Generator().manual_seed(0))))
    assert decision.choices == (0,) * 4 and decision.packs == ("bare-pack",)


def test_prototypes_are_the_top_right_singular_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 6, generator=generator)).Q for size in (30, 20))
    matrix = left * torch.tensor([9.0, 6.0, 4.0, 2.5, 0.5, 0.1]) @ right.T
    found = top_right_vectors(matrix, 4)
    assert torch.allclose(found @ found.T, right[:, :4] @ right[:, :4].T, atol=1e-4)
    assert top_right_vectors(matrix[:3], 4).shape == (20, 3)


def test_only_linear_modules_of_the_early_layers_have_prototypes(model: Any, bare_pack: Pack) -> None:
    found = find_prototypes(open_delta(bare_pack), model, layout_of(model), (1, 2))
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert set(found) == {f"model.layers.{layer}.{part}" for layer in (1, 2) for part in parts}


def test_fits_are_shares_of_the_content_s_inputs() -> None:
    made = make_model("llama", dtype=torch.float32, num_hidden_layers=3)
    name = "model.layers.1.self_attn.q_proj"
    basis = top_right_vectors(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), 2)
    ids, mask = torch.tensor([[7, 8, 9, 10, 3], [7, 11, 3, 2, 2]]), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    fits = measure_fits({"one": {name: basis}}, 1, Prefill(made, ids, mask), ChatMarkers((7,), (3,)))
    caught: list[torch.Tensor] = []
    handle = made.get_submodule(name).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    with torch.no_grad():
        made(ids, attention_mask=mask)
    handle.remove()
    shares = (caught[0] @ basis).square().sum(-1) / caught[0].square().sum(-1)
    assert torch.allclose(fits[:, 0], torch.stack([shares[0, 1:4].mean(), shares[1, 1]]), atol=1e-6)
    assert not any(module._forward_pre_hooks for module in made.modules())


def test_inputs_along_a_pack_s_direction_are_routed_to_it(
    base: Path, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Each of two packs reads what one kind of prompt puts into the query projection of the first judged layer."""
    deltas, means = (
        {},
        {name: mean_input(model, tokenizer, make(20)) for name, make in (("sums", sums), ("shouts", shouts))},
    )
    for name, other in (("sums", "shouts"), ("shouts", "sums")):
        away = means[other] / means[other].norm()
        inputs = torch.nn.functional.normalize(means[name] - (means[name] @ away) * away, dim=0)

        def along(tensors: dict[str, torch.Tensor], inputs: torch.Tensor = inputs) -> dict[str, torch.Tensor]:
            weight = tensors["model.layers.1.self_attn.q_proj.weight"]
            changed = weight.float() + 0.5 * torch.outer(torch.ones(len(weight)), inputs)
            return {**tensors, "model.layers.1.self_attn.q_proj.weight": changed.to(weight.dtype)}

        fine_tune = rewrite(base, tmp_path / f"{name}-tuned", along)
        deltas[name] = open_delta(build_pack(fine_tune, base, tmp_path / name, name=name))
    router = make_arrow(deltas, model, tokenizer)
    held_out = [*sums(10, seed=5), *shouts(10, seed=5)]
    decision = router.route(prefill_of(model, [encode(tokenizer, text, is_chat=False) for text in held_out]))
    assert decision.scores is not None
    assert decision.scores.argmax(1).tolist() == [0] * 10 + [1] * 10


def mean_input(model: Any, tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    """Return the mean input of a query projection."""
    caught: list[torch.Tensor] = []
    handle = model.model.layers[1].self_attn.q_proj.register_forward_pre_hook(
        lambda _, args, kwargs: caught.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        for text in prompts:
            model(torch.tensor([encode(tokenizer, text, is_chat=False)]))
    handle.remove()
    return torch.stack([one[0].float().mean(0) for one in caught]).mean(0)


def test_a_pack_that_changes_nothing_early_cannot_be_routed_by_weights(base: Path, model: Any, tmp_path: Path) -> None:
    def late(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "model.layers.9.mlp.up_proj.weight"
        return {**tensors, name: tensors[name] * 2}

    built = build_pack(rewrite(base, tmp_path / "tuned", late), base, tmp_path / "pack")
    with pytest.raises(UsageError, match="tiny-pack has no routing card and changes no linear module"):
        find_router({"tiny-pack": open_delta(built)}, model, notice=lambda text: None)


def test_a_classifier_learns_two_packs_and_the_base(model: Any, tokenizer: Any) -> None:
    prompts = {"sums": sums(40), "shouts": shouts(40)}
    router = train_classifier(model, tokenizer, prompts)
    texts = [*sums(10, seed=5), *shouts(10, seed=5), "Where is the station?", "He closed the door and left."]
    rows = [encode(tokenizer, text, is_chat=False) for text in texts]
    decision = router.route(prefill_of(model, rows))
    assert decision.packs == ("sums", "shouts")
    assert decision.choices == (0,) * 10 + (1,) * 10 + (None,) * 2
    again = train_classifier(model, tokenizer, prompts)
    assert torch.equal(again.weights, router.weights)


def test_a_classifier_needs_prompts_on_every_side(model: Any, tokenizer: Any) -> None:
    for prompts in ({}, {"sums": []}):
        with pytest.raises(UsageError, match="needs prompts for every pack"):
            train_classifier(model, tokenizer, prompts)


def test_a_router_needs_a_card() -> None:
    with pytest.raises(UsageError, match="no routing card"):
        CardRouter({}).route(Prefill(make_model("llama"), torch.tensor([[3]])))
