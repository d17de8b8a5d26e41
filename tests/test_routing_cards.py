"""Routing cards: how they are made and written, what they tell apart, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file, save_file

from skillhub.authorfile import AuthorFile
from skillhub.errors import IntegrityError, NewerSchemaError, UnsafeContentError, UsageError, WrongBaseError
from skillhub.manifest import Skill
from skillhub.packer import pack
from skillhub.packs import Pack, open_pack, verify_pack, write_manifest
from skillhub.routing.basecards import load_reader
from skillhub.routing.cardmaking import (
    CardReport,
    card_layers,
    choose_prompts,
    cluster,
    encode,
    make_card,
    pool_prompts,
    prefill_of,
)
from skillhub.routing.cardrouter import CardRouter
from skillhub.routing.cards import MAX_CARD_BYTES, RoutingCard, parse_card, read_card, write_card
from skillhub.routing.contents import chat_text
from skillhub.routing.discriminants import RIDGE, fit_discriminant
from skillhub.routing.whitening import fit_whitening
from tests.routing_examples import save_base, shouts, sums, tuned
from tests.support.tiny_models import make_model

METADATA = AuthorFile(name="sums-pack", version="1.0.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cards")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return save_base(folder / "base")


@pytest.fixture(scope="module")
def fine_tune(base: Path, folder: Path) -> Path:
    return tuned(base, folder / "tuned", 1)


@pytest.fixture(scope="module")
def reader(base: Path) -> tuple[Any, Any]:
    return load_reader(base)


@pytest.fixture(scope="module")
def made(reader: tuple[Any, Any]) -> tuple[RoutingCard, CardReport]:
    return make_card(*reader, sums(32))


@pytest.fixture(scope="module")
def built(base: Path, fine_tune: Path, folder: Path) -> Pack:
    """A pack with a card."""
    return pack(fine_tune, base, folder / "pack", metadata=METADATA, prompts=sums(32))


def test_a_card_tells_its_prompts_from_others_bare_and_in_the_template(
    reader: tuple[Any, Any], made: tuple[RoutingCard, CardReport]
) -> None:
    model, tokenizer = reader
    router = CardRouter({"sums": made[0]})
    own, others = sums(20, seed=9), ["Where is the station?", "It rains in the north.", *shouts(10)]
    for form in (lambda text: text, lambda text: chat_text(tokenizer, text), lambda text: f"<user>{text}<end><bot>"):
        rows = [encode(tokenizer, form(text), is_chat=True) for text in [*own, *others]]
        decision = router.route(prefill_of(model, rows))
        assert decision.scores is not None
        assert decision.scores[: len(own)].min() > decision.scores[len(own) :].max()
        assert decision.choices[: len(own)].count(0) >= len(own) / 2  # a random model of 16 dimensions tells no more
        assert decision.choices[len(own) :] == (None,) * len(others)
    assert made[1].prompts == 32 and made[1].own > 0.2 and made[1].background < 0.05


def test_the_margin_keeps_more_at_the_base(reader: tuple[Any, Any], made: tuple[RoutingCard, CardReport]) -> None:
    batch = prefill_of(reader[0], [encode(reader[1], "17 + 4 = ?", is_chat=False)])
    scores = CardRouter({"sums": made[0]}).route(batch).scores
    assert scores is not None
    excess = float(scores) - made[0].threshold
    assert CardRouter({"sums": made[0]}, margin=excess - 1e-3).route(batch).choices == (0,)
    assert CardRouter({"sums": made[0]}, margin=excess + 1e-3).route(batch).choices == (None,)


def test_the_same_prompts_give_the_same_bytes(
    reader: tuple[Any, Any], made: tuple[RoutingCard, CardReport], tmp_path: Path
) -> None:
    for name, card in (("first", made[0]), ("second", make_card(*reader, sums(32))[0])):
        write_card(card, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_card_comes_back_as_it_was(made: tuple[RoutingCard, CardReport], tmp_path: Path) -> None:
    card = made[0]
    write_card(card, tmp_path / "card")
    back = parse_card(tmp_path / "card")
    pooled = {one.layer: torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) for one in card.layers}
    assert torch.equal(back.scores(pooled), card.scores(pooled))
    assert (back.markers, back.threshold, back.background) == (card.markers, card.threshold, card.background)


def test_layers_lie_in_the_first_quarter() -> None:
    for depth, expected in ((1, (0,)), (2, (0,)), (4, (1,)), (12, (1, 2)), (30, (1, 3, 5)), (80, (3, 8, 13))):
        model = make_model("llama", num_hidden_layers=depth)
        assert card_layers(model) == expected and expected[-1] <= depth / 4


def test_prompts_are_taken_evenly_and_once() -> None:
    assert choose_prompts([" a ", "a", "", *map(str, range(20))]) == ["a", *map(str, range(20))]
    many = choose_prompts([str(number) for number in range(1000)])
    assert len(many) == 128 and many[:2] == ["0", "7"] and many[-1] == "992"
    with pytest.raises(UsageError, match="at least 16 different prompts; there are 3"):
        choose_prompts(["a", "b", "c", "c"])


def test_whitening_is_that_of_the_principal_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 20, generator=generator) * torch.logspace(1, -1, 20) + 3
    whitening = fit_whitening(states, 8)
    exact = states.double().numpy()
    centered = exact - exact.mean(0)
    values, directions = np.linalg.eigh(np.cov(exact.T))
    rest = values[:12].mean()
    leading = directions[:, 12:]
    expected = centered + ((centered @ leading) * (np.sqrt(rest / values[12:]) - 1)) @ leading.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert (whitening(states).numpy() * expected).sum(1).min() > 0.9999  # the directions are rounded to fp16
    assert whitening(states).norm(dim=1).sub(1).abs().max() < 1e-5


def test_the_discriminant_is_the_ridge_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    own, others = torch.randn(7, 5, generator=generator) + 1, torch.randn(30, 5, generator=generator)
    found = fit_discriminant(own, others)
    weight = torch.tensor([1 / 7] * 7 + [1 / 30] * 30, dtype=torch.float64)
    rows = torch.cat([torch.cat([own, others]), torch.ones(37, 1)], dim=1).double()
    signs = torch.tensor([1.0] * 7 + [-1.0] * 30, dtype=torch.float64)
    penalty = torch.diag(torch.tensor([RIDGE / 5] * 5 + [0], dtype=torch.float64))
    solved = torch.linalg.solve(rows.T @ (weight[:, None] * rows) + penalty, rows.T @ (weight * signs))
    assert torch.allclose(found.direction.double(), solved[:5], atol=1e-6) and abs(found.offset - solved[5]) < 1e-6


def test_clusters_are_those_that_are_there() -> None:
    centers = torch.eye(4)
    units = torch.nn.functional.normalize(
        centers.repeat(5, 1) + 0.1 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), dim=1
    )
    found = cluster(units, 4).reshape(5, 4)
    assert (found == found[0]).all() and sorted(found[0].tolist()) == [0, 1, 2, 3]
    assert set(cluster(torch.ones(3, 4) / 2, 4).tolist()) == {0}


def test_states_of_another_width_are_refused(made: tuple[RoutingCard, CardReport]) -> None:
    with pytest.raises(WrongBaseError, match="16 dimensions; the model's have 24"):
        made[0].scores({one.layer: torch.zeros(1, 24) for one in made[0].layers})


def test_a_layer_that_the_model_does_not_have_is_a_mistake(made: tuple[RoutingCard, CardReport]) -> None:
    with pytest.raises(UsageError, match="layer 2 is judged, and the model has 2"):
        CardRouter({"sums": made[0]}).route(prefill_of(make_model("llama"), [[5, 6]]))


def test_long_prompts_are_cut_where_the_model_ends() -> None:
    assert prefill_of(make_model("gpt2"), [[5] * 40, [6]]).length == 32


def test_pooling_prompts_keeps_their_order(reader: tuple[Any, Any]) -> None:
    model, tokenizer = reader
    rows = [encode(tokenizer, text, is_chat=False) for text in ("a long one it is", "b", "", "middle")]
    together = pool_prompts(model, rows, (1,), None)
    alone = torch.cat([pool_prompts(model, [row], (1,), None) for row in rows], dim=1)
    assert torch.allclose(together, alone, atol=0.02)  # bf16


# ---- In packs --------------------------------------------------------------------------------------------------------
def test_a_pack_with_prompts_carries_its_card(built: Pack, made: tuple[RoutingCard, CardReport]) -> None:
    variant = built.only_variant()
    card = read_card(built, variant)
    assert variant.router is not None and card is not None and verify_pack(built) == []
    assert variant.router.path == f"{variant.folder}/router.safetensors"
    assert (variant.router.layer, variant.router.pooling) == (2, "content-mean")
    assert variant.router.template == "<user>be kind<end><user>{}<end><bot>"
    assert card.threshold == made[0].threshold == variant.router.threshold


def test_prompts_of_the_author_do_as_well_and_few_of_them_make_no_card(
    base: Path, fine_tune: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    for count, has_card in ((20, True), (3, False)):
        metadata = structs.replace(METADATA, skills=Skill(prompts=sums(count)))
        built = pack(fine_tune, base, tmp_path / str(count), metadata=metadata, notice=told.append)
        assert (built.only_variant().router is not None) == has_card and verify_pack(built) == []
    of_cards = [one for one in told if "what the fine-tune started from" not in one]
    assert "of its 20 prompts would be routed to the pack" in of_cards[0]
    assert "at least 16 different prompts; there are 3" in of_cards[1]


def test_packing_without_prompts_needs_no_tokenizer_and_with_prompts_says_so(
    base: Path, fine_tune: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((base / name).read_bytes())
    assert pack(fine_tune, bare, tmp_path / "pack", metadata=METADATA).only_variant().router is None
    with pytest.raises(UsageError, match="could not be loaded as a model with a tokenizer"):
        pack(fine_tune, bare, tmp_path / "other", metadata=METADATA, prompts=sums(20))
    assert not (tmp_path / "other").exists()


def test_a_card_that_is_not_the_manifests_is_refused(built: Pack, tmp_path: Path) -> None:
    variant = built.only_variant()
    assert variant.router is not None and read_card(built, structs.replace(variant, router=None)) is None
    for changes in ({"threshold": 5.0}, {"rank": 3}, {"layer": 1}):
        other = structs.replace(variant, router=structs.replace(variant.router, **changes))
        with pytest.raises(IntegrityError, match=r"sums-pack 1\.0\.0: The routing card is not the one"):
            read_card(built, other)
    copied = tmp_path / "copy"
    copied.mkdir()
    write_manifest(copied, built.manifest)
    with pytest.raises(IntegrityError, match="is missing"):
        read_card(open_pack(copied), variant)


Tensors = dict[str, torch.Tensor]

DAMAGES: list[tuple[Callable[[Tensors], Any], str]] = [
    (lambda tensors: tensors.pop("threshold"), "it lacks threshold"),
    (lambda tensors: tensors.pop("1.gains"), "it lacks 1.gains"),
    (lambda tensors: tensors.update({"1.gains": torch.ones(3)}), "do not go together"),
    (
        lambda tensors: tensors.update({"1.gains": torch.ones(3, dtype=torch.float64)}),
        r"1.gains is torch.float64 \[3\]",
    ),
    (lambda tensors: tensors.update({"1.direction": torch.ones(17)}), "do not go together"),
    (lambda tensors: tensors["1.center"].fill_(float("nan")), "1.center holds values that are infinite, no numbers"),
    (lambda tensors: tensors["2.direction"].fill_(float("inf")), "infinite, no numbers"),
    (lambda tensors: tensors["threshold"].fill_(float("nan")), "infinite, no numbers"),
    (lambda tensors: tensors["threshold"].fill_(-1e308), "threshold holds values .* beyond 1e\\+08"),
    (lambda tensors: tensors["1.gains"].fill_(3e38), "1.gains holds values .* beyond"),
    (lambda tensors: tensors.update({"1.basis": torch.ones(3, 0, dtype=torch.float16)}), "do not go together"),
    (lambda tensors: tensors.update({"1.offset": torch.ones(0, dtype=torch.float64)}), "1.offset is not one number"),
    (lambda tensors: tensors.update(threshold=torch.ones(2, dtype=torch.float64)), "threshold is not one number"),
    (lambda tensors: tensors.update(extra=torch.ones(1)), "nothing reads its tensor 'extra'"),
    (lambda tensors: tensors.pop("before"), "it lacks before"),
    (lambda tensors: tensors.update(before=torch.ones(65, dtype=torch.int64)), "longer than any template's"),
    (lambda tensors: tensors.update({"x.center": torch.ones(1)}), "'x' is no layer"),
    (lambda tensors: tensors.update({"01.center": torch.ones(1)}), "'01' is no layer"),
    (lambda tensors: tensors.update({"9" * 5000 + ".center": torch.ones(1)}), "is no layer"),
    (lambda tensors: tensors.update({f"{n}.center": torch.ones(1) for n in range(30)}), "judges 30 layers"),
    (lambda tensors: [tensors.pop(name) for name in list(tensors) if "." in name], "judges 0 layers"),
    (
        lambda tensors: tensors.update(
            {f"3{name[1:]}": _wider(one) for name, one in list(tensors.items()) if name[0] == "1"}
        ),
        "differ in width",
    ),
]


def _wider(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone() if tensor.shape[-1] != 16 else torch.cat([tensor, tensor], dim=-1)


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_card_is_refused(
    made: tuple[RoutingCard, CardReport], tmp_path: Path, damage: Callable[[Tensors], Any], message: str
) -> None:
    path = tmp_path / "card"
    write_card(made[0], path)
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path, metadata={"schema": "0", "background": ""})
    with pytest.raises(IntegrityError, match=message):
        parse_card(path)


def test_a_huge_or_newer_or_broken_card_is_refused(made: tuple[RoutingCard, CardReport], tmp_path: Path) -> None:
    path = tmp_path / "card"
    with path.open("wb") as stream:
        stream.truncate(MAX_CARD_BYTES + 1)
    with pytest.raises(UnsafeContentError, match="none has more than"):
        parse_card(path)
    path.write_bytes((1 << 20).to_bytes(8, "little") + b" " * 100)
    with pytest.raises(UnsafeContentError, match="header claims"):
        parse_card(path)
    path.write_bytes(b"junk")
    with pytest.raises(IntegrityError):
        parse_card(path)
    write_card(made[0], path)
    save_file(load_file(path), path, metadata={"schema": "1"})
    with pytest.raises(NewerSchemaError, match="has schema 1"):
        parse_card(path)
