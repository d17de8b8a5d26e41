from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace as replace_struct
from safetensors.torch import load_file

from skillhub.compose.fusion import fuse
from skillhub.compose.grafts import graft, grafted_packs, set_weights, ungraft
from skillhub.compose.routed import routed_packs
from skillhub.errors import IntegrityError, NotFoundError, UsageError, WrongBaseError
from skillhub.packs import Pack, open_pack
from tests.support.tiny_models import (
    bits,
    build_pack,
    build_place,
    load_model,
    make_model,
    rewrite,
    save_model,
    tune,
    with_entry,
)

KINDS = ("llama", "tied", "gpt2", "bert", "mixtral")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → folder of :func:`build_place`."""
    root = tmp_path_factory.mktemp("models")
    return functools.cache(lambda kind: build_place(kind, root / kind))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, places: Callable[[str], Path]) -> Path:
    return places(request.param)


@pytest.fixture
def llama(places: Callable[[str], Path]) -> Path:
    return places("llama")


def test_an_exact_pack_gives_the_fine_tune_bit_for_bit_and_comes_out_again(place: Path):
    model = load_model(place / "base")
    before = bits(model)
    parameters = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.train()
    assert graft(model, [place / "one"]) is model
    assert bits(model) == bits(load_model(place / "tuned"))
    assert {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)} == parameters
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == grads
    assert model.training
    assert [str(item.pack.name) for item in grafted_packs(model)] == ["one"]
    assert ungraft(model) is model
    assert bits(model) == before
    assert grafted_packs(model) == ()


def test_the_order_and_the_number_of_calls_do_not_matter(place: Path):
    packs = [place / name for name in ("one", "two", "three")]
    at_once, reordered, one_by_one = (load_model(place / "base") for _ in range(3))
    graft(at_once, packs, weights=[1.0, 0.5, -0.25])
    graft(reordered, packs[::-1], weights=[-0.25, 0.5, 1.0])
    for pack, weight in zip(packs, [1.0, 0.5, -0.25], strict=True):
        graft(one_by_one, [pack], weights=[weight])
    assert bits(at_once) == bits(reordered) == bits(one_by_one)


def test_taking_one_of_several_out_leaves_what_the_others_alone_give(place: Path):
    model, expected = load_model(place / "base"), load_model(place / "base")
    graft(model, [place / "one", place / "two", place / "three"], method="ties", densities=[1, 0.5, 0.5])
    ungraft(model, "two")
    graft(expected, [place / "three", place / "one"], method="ties", densities=[0.5, 1])
    assert bits(model) == bits(expected)


def test_the_sum_is_in_fp32_and_a_lossy_pack_is_rounded_without_bias(llama: Path):
    model = load_model(llama / "base")
    base = load_file(llama / "base" / "model.safetensors")
    graft(model, [llama / "two"])
    tuned = load_file(llama / "tuned2" / "model.safetensors")
    grafted = model.state_dict()
    errors = []
    for name, start in base.items():
        delta = ((tuned[name].float() - start.float()) * 512).round() / 512
        exact = start.float() + delta
        step = torch.maximum(exact.abs(), start.float().abs()) * 2**-7
        assert ((grafted[name].float() - exact).abs() <= step).all(), name
        errors.append(((grafted[name].float() - exact) / step.clamp(min=1e-30)).flatten())
    assert abs(torch.cat(errors).mean()) < 0.01


def test_an_fp32_model_of_a_bf16_base_takes_the_pack_without_rounding(llama: Path):
    model = load_model(llama / "base").float()
    graft(model, [llama / "one"])
    assert bits(model) == bits(load_model(llama / "tuned").float())


def test_tied_parameters_stay_tied_and_are_written_once(places: Callable[[str], Path]):
    model = load_model(places("tied") / "base")
    graft(model, [places("tied") / "two"])
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("at", [0, 3, 11])
def test_a_pack_that_is_damaged_at_tensor_k_changes_nothing(llama: Path, tmp_path: Path, at: int):
    pack = build_pack(llama / "tuned2", llama / "base", tmp_path / "bad", name="bad")
    name = sorted(pack.manifest.variants[0].codec.tensors)[at]
    with_entry(pack, name, digest="0" * 64)
    for already in ([], [llama / "one"]):
        model = load_model(llama / "base")
        if already:
            graft(model, already)
        before = bits(model)
        with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
            graft(model, [tmp_path / "bad"], verify="full")
        assert bits(model) == before
        assert len(grafted_packs(model)) == len(already)


def test_a_byte_that_changed_in_a_pack_is_found_before_a_tensor_is_written(llama: Path, tmp_path: Path):
    build_pack(llama / "tuned2", llama / "base", tmp_path / "bad", name="bad", lossy=True)
    (file,) = tmp_path.glob("bad/**/delta-*.safetensors")
    payload = bytearray(file.read_bytes())
    payload[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(payload)
    model, written = load_model(llama / "base"), []
    with pytest.raises(IntegrityError, match=r"delta-00001\.safetensors"):
        graft(model, [tmp_path / "bad"], progress=lambda *done: written.append(done))
    assert not written and grafted_packs(model) == ()


def test_an_interruption_from_the_progress_callback_changes_nothing(llama: Path):
    def interrupt(what: str, done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    model = load_model(llama / "base")
    before = bits(model)
    with pytest.raises(KeyboardInterrupt):
        graft(model, [llama / "one"], progress=interrupt)
    assert bits(model) == before and grafted_packs(model) == ()
    graft(model, [llama / "one"])
    grafted = bits(model)
    with pytest.raises(KeyboardInterrupt):
        ungraft(model, progress=interrupt)
    assert bits(model) == grafted and len(grafted_packs(model)) == 1


def test_progress_counts_tensors(llama: Path):
    seen: list[tuple[str, int, int]] = []
    graft(load_model(llama / "base"), [llama / "three"], progress=lambda *step: seen.append(step))
    total = len(seen)
    assert seen == [("tensors", number, total) for number in range(1, total + 1)] and total > 3


def test_the_wrong_base_is_explained_and_nothing_is_touched(llama: Path):
    for verify in ("full", "sample"):
        model = load_model(llama / "tuned")
        before = bits(model)
        with pytest.raises(WrongBaseError, match=r"one 1.0.0 does not fit this model.*a fine-tune of it") as caught:
            graft(model, [llama / "one"], verify=verify)
        assert bits(model) == before
        assert caught.value.exit_code == 5 and caught.value.hint


def test_another_architecture_is_refused_even_when_trusted(llama: Path, places: Callable[[str], Path]):
    model = load_model(places("bert") / "base")
    before = bits(model)
    with pytest.raises(WrongBaseError, match="Another architecture"):
        graft(model, [llama / "one"])
    with pytest.raises(WrongBaseError, match=r"None of the .* tensors of one"):
        graft(model, [llama / "one"], trust_base=True)
    assert bits(model) == before


def test_a_trusted_base_is_not_hashed_but_its_names_and_shapes_are_checked(llama: Path):
    model = load_model(llama / "tuned")
    graft(model, [llama / "one"], trust_base=True)
    ungraft(model)
    assert bits(model) == bits(load_model(llama / "tuned"))
    wider = make_model("llama", intermediate_size=32)
    with pytest.raises(WrongBaseError, match=r"\[16, 24\].*\[16, 32\]"):
        graft(wider, [llama / "one"], trust_base=True)


def test_a_weight_that_was_moved_by_hand_is_found(llama: Path):
    model = load_model(llama / "base")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] += 1
    with pytest.raises(WrongBaseError, match=r"1 of \d+ tensors differs \(layers\.1\.mlp\.up_proj"):
        graft(model, [llama / "one"])


def test_a_sample_finds_names_and_shapes_and_lets_the_base_pass(llama: Path):
    model = load_model(llama / "base")
    graft(model, [llama / "one"], verify="sample")
    graft(model, [llama / "two"], verify="sample")
    ungraft(model)
    assert bits(model) == bits(load_model(llama / "base"))
    with pytest.raises(WrongBaseError, match="does not fit this model"):
        graft(make_model("llama", num_hidden_layers=1), [llama / "one"], verify="sample")


def test_grafting_more_verifies_the_originals_and_not_the_grafted_weights(llama: Path):
    model = load_model(llama / "base")
    graft(model, [llama / "one"], verify="full")
    graft(model, [llama / "two"], verify="full")
    ungraft(model)
    assert bits(model) == bits(load_model(llama / "base"))


def test_a_float16_load_is_accepted_for_its_known_source(llama: Path):
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(llama / "base", dtype=torch.float16)
    graft(model, [llama / "one"])
    assert model.dtype == torch.float16 and len(grafted_packs(model)) == 1


def test_a_float16_model_that_is_not_its_source_is_refused_for_all_its_name(llama: Path):
    import transformers

    for change in ("all", "one"):
        model = transformers.LlamaForCausalLM.from_pretrained(llama / "base", dtype=torch.float16)
        with torch.no_grad():
            for parameter in list(model.parameters())[: None if change == "all" else 1]:
                parameter.view(-1)[:1].add_(1)
        before = bits(model)
        with pytest.raises(WrongBaseError, match="does not fit"):
            graft(model, [llama / "one"])
        assert bits(model) == before


def test_more_packs_are_grafted_onto_a_float_16_model(llama: Path):
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(llama / "base", dtype=torch.float16)
    graft(model, [llama / "one"])
    graft(model, [llama / "two"])
    assert len(grafted_packs(model)) == 2


def test_a_short_name_means_the_pack_without_owner_where_both_are_grafted(llama: Path):
    from dataclasses import replace

    one, two = open_pack(llama / "one"), open_pack(llama / "two")
    owned = replace(two, owner="acme", manifest=replace_struct(two.manifest, name="one"))
    model = load_model(llama / "base")
    graft(model, [one, owned])
    ungraft(model, "one")
    assert [str(item.pack) for item in grafted_packs(model)] == ["acme/one 1.0.0"]


def test_a_changed_dtype_between_graft_and_ungraft_gives_the_base_in_the_new_dtype(llama: Path):
    model = load_model(llama / "base")
    graft(model, [llama / "one"])
    model.float()
    ungraft(model)
    assert bits(model) == bits(load_model(llama / "base").float())


def test_a_deep_copy_is_a_grafted_model_of_its_own(llama: Path):
    model = load_model(llama / "base")
    graft(model, [llama / "one"])
    twin = copy.deepcopy(model)
    ungraft(model)
    assert bits(twin) == bits(load_model(llama / "tuned"))
    ungraft(twin)
    assert bits(twin) == bits(model) == bits(load_model(llama / "base"))


def resized(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return {n: torch.cat([t, t[:3] * 0.5]) if n in names else t + 0.01 for n, t in tensors.items()}


def test_a_resized_vocabulary_is_refused_with_the_remedy(llama: Path, tmp_path: Path):
    pack = build_pack(rewrite(llama / "base", tmp_path / "tuned", resized), llama / "base", tmp_path / "pack")
    model = load_model(llama / "base")
    with pytest.raises(UsageError, match="from 26 to 29 rows") as caught:
        graft(model, [pack])
    assert "skillhub fuse" in caught.value.hint
    assert bits(model) == bits(load_model(llama / "base"))


def test_added_and_removed_tensors_are_refused_with_the_remedy(llama: Path, tmp_path: Path):
    def more(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**tensors, "score.weight": torch.ones(2, 16, dtype=torch.bfloat16)}

    def fewer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}

    for change, word in ((more, "adds"), (fewer, "removes")):
        changed = rewrite(tune(llama / "base", tmp_path / word / "tuned"), tmp_path / word / "changed", change)
        pack = build_pack(changed, llama / "base", tmp_path / word / "pack")
        with pytest.raises(UsageError, match=f"{word} the tensor") as caught:
            graft(load_model(llama / "base"), [pack])
        assert "skillhub fuse" in caught.value.hint
        assert ("the fine-tune's class" in caught.value.hint) == (word == "adds")


def test_tensors_that_are_added_to_layers_are_refused_without_a_way_round(llama: Path, tmp_path: Path):
    def biased(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        biases = {f"model.layers.{n}.self_attn.{p}_proj.bias": torch.ones(16) for n in (0, 1) for p in "qo"}
        return {**tensors, **biases}

    changed = rewrite(llama / "base", tmp_path / "changed", biased)
    pack = build_pack(changed, llama / "base", tmp_path / "pack")
    expected = r"adds layers\.0\.self_attn\.o_proj\.bias, .* and 1 more in the layers: its architecture"
    for attempt in (
        lambda: graft(load_model(llama / "base"), [pack]),
        lambda: fuse(llama / "base", [pack], tmp_path / "fused"),
    ):
        with pytest.raises(UsageError, match=expected) as caught:
            attempt()
        assert "skillhub fuse" not in caught.value.hint
    assert not (tmp_path / "fused").exists()


def refused(model: Any, packs: Any, **options: Any) -> str:
    before = bits(model)
    with pytest.raises((UsageError, NotFoundError)) as caught:
        graft(model, packs, **options)
    assert caught.value.hint and bits(model) == before
    return caught.value.message


def test_calls_that_make_no_sense_are_refused_with_a_hint(llama: Path):
    model, one = load_model(llama / "base"), llama / "one"
    assert "no use for method" in refused(model, [one], mode="routed", method="ties")
    assert "no mode 'soft'" in refused(model, [one], mode="soft")
    assert "no merge method" in refused(model, [one], method="magic")
    assert "no rounding" in refused(model, [one], rounding="up")
    assert "no verification" in refused(model, [one], verify="never")
    assert "No pack" in refused(model, [])
    assert "must be a list" in refused(model, one)
    assert "there twice" in refused(model, [one, one])
    assert "1 packs and weights" in refused(model, [one], weights=[1, 2])
    assert "does not use densities" in refused(model, [one], densities=[0.5])
    assert "share of elements" in refused(model, [one], method="ties", densities=[0])
    assert "None is not a pack" in refused(model, [None])
    assert "3 is not a pack" in refused(model, [3])
    assert "packs must be a list" in refused(model, 3)
    assert "packs must be a list" in refused(model, {one: 0.5})
    assert "options must be a mapping" in refused(model, [one], options=["lambda"])
    assert "A seed is a whole number" in refused(model, [one], seed="0")
    assert "weights must be a list" in refused(model, [one], weights=0.5)
    for weight in (1e7, -1e7, [0, 1e7], {"mlp": 1e7}):
        assert "too much for weights" in refused(model, [one], weights=[weight])
    for weight in (None, "x", True, 10**400, float("nan"), float("inf"), 1j, [], {}, [1, None], {"mlp": "x"}):
        assert "no number for weights" in refused(model, [one], weights=[weight])
    assert "not a pattern" in refused(model, [one], weights=[{"(": 1}])
    assert "has no option 'gamma'" in refused(model, [one], options={"gamma": 1})
    assert "densities must be a list" in refused(model, [one], method="ties", densities=1)
    graft(model, [one])
    assert "there twice" in refused(model, [one])
    assert "already use method 'linear'" in refused(model, [llama / "two"], method="ties")


@pytest.mark.parametrize("thing", [None, "acme/model", object()])
def test_what_is_no_model_is_told(thing: Any, llama: Path):
    calls: list[Callable[[], object]] = [
        lambda: graft(thing, [llama / "one"]),
        lambda: graft(thing, [llama / "one"], mode="routed"),
        lambda: ungraft(thing),
        lambda: set_weights(thing, {}),
        lambda: grafted_packs(thing),
        lambda: routed_packs(thing),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="A model is needed here") as caught:
            call()
        assert caught.value.hint


def test_weights_may_be_a_tensor(llama: Path):
    model = graft(load_model(llama / "base"), [llama / "one"], weights=torch.tensor([0.5]))
    assert bits(model) == bits(graft(load_model(llama / "base"), [llama / "one"], weights=[0.5]))


def test_packs_and_weights_may_come_from_generators(llama: Path):
    model, expected = load_model(llama / "base"), load_model(llama / "base")
    graft(model, (pack for pack in [llama / "one", llama / "two"]), weights=(weight for weight in (1, np.float32(0.5))))
    graft(expected, [llama / "one", llama / "two"], weights=[1.0, 0.5])
    assert bits(model) == bits(expected)


def test_a_model_that_lost_a_layer_or_was_resized_is_said_to_have_changed(llama: Path):
    model = load_model(llama / "base")
    graft(model, [llama / "one"])
    del model.model.layers[1]
    before = bits(model)
    with pytest.raises(UsageError, match=r"changed since packs were grafted: it has no layers\.1\.") as caught:
        ungraft(model)
    assert caught.value.hint and bits(model) == before

    model = load_model(llama / "base")
    graft(model, [llama / "one"])
    model.resize_token_embeddings(30, mean_resizing=False)
    before = bits(model)
    with pytest.raises(UsageError, match=r"was resized since .* was \[26, 16\] and is \[30, 16\]") as caught:
        ungraft(model)
    assert "resize_token_embeddings" in caught.value.hint and bits(model) == before
    model.resize_token_embeddings(26, mean_resizing=False)
    ungraft(model)
    assert bits(model) == bits(load_model(llama / "base"))


def test_sums_that_overflow_are_refused_and_the_model_stays(llama: Path, tmp_path: Path):
    def large(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**tensors, "model.norm.weight": tensors["model.norm.weight"] + 1e35}

    pack = build_pack(rewrite(llama / "base", tmp_path / "tuned", large), llama / "base", tmp_path / "pack")
    model = load_model(llama / "base")
    assert "norm.weight would have values that torch.bfloat16 cannot hold" in refused(model, [pack], weights=[1e5])
    with pytest.raises(UsageError, match="cannot hold"):
        fuse(llama / "base", [pack], tmp_path / "fused", weights=[-1e5])
    graft(model, [pack], weights=[1e2])
    ungraft(model)
    assert bits(model) == bits(load_model(llama / "base"))


def test_ungrafting_what_is_not_there_is_refused(llama: Path):
    model = load_model(llama / "base")
    with pytest.raises(UsageError, match="no grafted pack"):
        ungraft(model)
    graft(model, [llama / "one"])
    with pytest.raises(UsageError, match="3 is not a pack"):
        ungraft(model, 3)
    with pytest.raises(NotFoundError, match="two is not grafted"):
        ungraft(model, "two")
    with pytest.raises(NotFoundError, match="is not grafted"):
        ungraft(model, llama / "two")
    ungraft(model, llama / "one")


def test_packs_of_different_bases_are_refused(llama: Path, places: Callable[[str], Path]):
    with pytest.raises(WrongBaseError, match="no base in common"):
        graft(load_model(llama / "base"), [llama / "one", places("gpt2") / "one"])


def test_a_pack_that_changes_nothing_is_an_error(llama: Path, tmp_path: Path):
    pack = build_pack(llama / "base", llama / "base", tmp_path / "pack")
    with pytest.raises(WrongBaseError, match="None of the 0 tensors"):
        graft(load_model(llama / "base"), [pack])


def test_integer_buffers_are_set_not_added(tmp_path: Path):
    base = save_model("resnet", tmp_path / "base")

    def trained(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: t + 0.25 if t.is_floating_point() else t + 3 for n, t in tensors.items()}

    tuned = rewrite(base, tmp_path / "tuned", trained)
    build_pack(tuned, base, tmp_path / "one", name="one")
    build_pack(rewrite(tuned, tmp_path / "more", trained), base, tmp_path / "two", name="two")
    model = load_model(base)
    before = bits(model)
    graft(model, [tmp_path / "one"], weights=[1])
    assert bits(model) == bits(load_model(tuned))
    with pytest.raises(UsageError, match="set it to different values"):
        graft(model, [tmp_path / "two"])
    assert bits(model) == bits(load_model(tuned))
    ungraft(model)
    assert bits(model) == before


def test_a_model_on_the_meta_device_is_refused(llama: Path):
    with torch.device("meta"):
        model = make_model("llama")
    with pytest.raises(UsageError, match="no weights in memory") as caught:
        graft(model, [llama / "one"], trust_base=True)
    assert caught.value.hint


def test_installed_names_are_looked_up_in_the_environment(llama: Path, tmp_path: Path, homes: Path):
    import shutil

    from skillhub.environments import Environment, Receipt, user_environment, write_project
    from skillhub.projects import Project

    pack = Pack(llama / "one", build_pack(llama / "tuned", llama / "base", tmp_path / "pack", name="one").manifest)
    fingerprint = pack.manifest.variants[0].base.fingerprint
    for environment in (Environment(tmp_path / "project"), user_environment(fingerprint)):
        folder = environment.packs_folder / "acme" / "one"
        shutil.copytree(tmp_path / "pack", folder)
        receipt = Receipt(
            schema=0,
            name="acme/one",
            registry="local",
            repository="acme/one",
            version="1.0.0",
            manifest=pack.digest,
            fingerprint=fingerprint,
            files=[],
        )
        (folder / "receipt.json").write_bytes(receipt.to_bytes())
        write_project(environment, Project(requirements=["acme/one"]))
    for options in ({"environment": tmp_path / "project"}, {}):
        model = load_model(llama / "base")
        graft(model, ["acme/one"], **options)
        assert [str(item.pack) for item in grafted_packs(model)] == ["acme/one 1.0.0"]
        assert bits(model) == bits(load_model(llama / "tuned"))
        ungraft(model, "one")
        assert bits(model) == bits(load_model(llama / "base"))
        with pytest.raises(NotFoundError, match="two is not installed"):
            graft(model, ["acme/two"], **options)
