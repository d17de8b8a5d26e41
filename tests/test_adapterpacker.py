"""Packs of PEFT adapters: what peft computes with the adapter is what the model computes with the pack."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from skillhub.adapterpacker import pack_adapter
from skillhub.authorfile import AuthorFile
from skillhub.codecs import exact, factors, sparse
from skillhub.compose.fusion import fuse
from skillhub.compose.grafts import graft, ungraft
from skillhub.compose.merging import Contribution
from skillhub.compose.recipes import make_recipe
from skillhub.compose.routed import graft_routed
from skillhub.compose.routed.factors import read_factors
from skillhub.errors import IntegrityError, SkillhubError, UsageError, WrongBaseError
from skillhub.exporter import export_adapters
from skillhub.packdeltas import open_delta
from skillhub.packs import Pack
from skillhub.progress import silence
from tests.support.commands import Shell
from tests.support.peft_adapters import make_adapter, merged_model, with_arrays, with_config
from tests.support.tiny_models import VOCABULARY, bits, build_pack, load_model, save_model, tune, with_entry

ATTENTION = ["q_proj", "v_proj"]
TOKENS = torch.arange(2 * 12).reshape(2, 12) % VOCABULARY
METADATA = AuthorFile(name="lora-pack", version="1.0.0")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": "all-linear"}),
    "tied": ("tied", {"target_modules": ATTENTION}),
    "rank-stabilized": ("llama", {"target_modules": ATTENTION, "use_rslora": True, "r": 3}),
    "rank and alpha patterns": (
        "llama",
        {
            "target_modules": [*ATTENTION, "down_proj"],
            "rank_pattern": {"v_proj": 3, "layers.1.mlp.down_proj": 2},
            "alpha_pattern": {"v_proj": 5, r"^model\.layers\.\d+\.mlp.*": 11, "layers.0.self_attn.q_proj": 2},
        },
    ),
    "modules to save": ("llama", {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm", "embed_tokens"]}),
    "embeddings and head": ("llama", {"target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "a rank above the width": ("llama", {"target_modules": ["down_proj"], "r": 40, "lora_alpha": 40}),
    "Conv1D, all biases": ("gpt2", {"target_modules": ["c_attn", "c_proj", "wpe"], "bias": "all"}),
    "biases of the factors": ("bert", {"target_modules": ["query", "dense"], "lora_bias": True}),
    "biases of the layers": ("bert", {"target_modules": ["query", "value"], "bias": "lora_only"}),
    "experts beside": ("mixtral", {"target_modules": ATTENTION}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → folder of an fp32 base model."""
    root = tmp_path_factory.mktemp("bases")
    return functools.cache(lambda kind: save_model(kind, root / kind, dtype=torch.float32))


def outputs(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=TOKENS)[0]
    return result


def make_pack(adapter: Path, base: Path, folder: Path, name: str = "lora-pack", **options: Any) -> Pack:
    return pack_adapter(adapter, base, folder, metadata=AuthorFile(name=name, version="1.0.0"), **options)


def codecs_of(pack: Pack) -> dict[str, list[str]]:
    return {name: entry.codecs for name, entry in open_delta(pack).tensors.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_grafted_pack_computes_what_peft_merges(case: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    kind, settings = CASES[case]
    base = bases(kind)
    adapter = make_adapter(base, tmp_path / "lora", **settings)
    pack = make_pack(adapter, base, tmp_path / "pack")
    model = load_model(base)
    before, plain = bits(model), outputs(model)
    graft(model, [pack])
    expected = outputs(merged_model(base, adapter))
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)
    fused = load_model(fuse(base, [pack], tmp_path / "fused", verify="full"))
    assert torch.equal(outputs(fused), outputs(model))
    ungraft(model)
    assert bits(model) == before


@pytest.mark.parametrize("memory", ["factors", "weights"])
@pytest.mark.parametrize("case", ["plain", "rank-stabilized", "Conv1D, all biases", "embeddings and head"])
def test_a_routed_pack_computes_in_its_rows_what_peft_merges(
    case: str, memory: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    kind, settings = CASES[case]
    base = bases(kind)
    adapter = make_adapter(base, tmp_path / "lora", **settings)
    pack = make_pack(adapter, base, tmp_path / "pack")
    model = graft_routed(load_model(base), [pack], router=[], executor="factored", memory=memory, notice=silence)
    with torch.no_grad():
        found = model(input_ids=TOKENS, pack_choices=["lora-pack", None])[0]
    torch.testing.assert_close(found[0], outputs(merged_model(base, adapter))[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found[1], outputs(load_model(base))[1], rtol=1e-5, atol=2e-5)


def test_the_routed_executor_gets_the_stored_factors_and_not_a_decomposition(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = make_adapter(bases("llama"), tmp_path / "lora", target_modules=ATTENTION)
    delta = open_delta(make_pack(adapter, bases("llama"), tmp_path / "pack"))
    recipe = make_recipe([delta.pack], fingerprint=lambda: delta.variant.base.fingerprint)
    for name in delta.names:
        found = read_factors(Contribution(recipe.packs[0], delta), name, transposed=False)
        arrays = load_file(adapter / "adapter_model.safetensors")
        module = f"base_model.model.model.{name.removesuffix('.weight')}"
        assert found is not None and len(found.right) == 4
        product = arrays[f"{module}.lora_B.weight"] @ arrays[f"{module}.lora_A.weight"] * 1.5
        torch.testing.assert_close(found.left.T @ found.right, product, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_factors_are_stored_as_the_adapter_has_them(
    dtype: torch.dtype, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = make_adapter(bases("llama"), tmp_path / "lora", use_rslora=True, r=3, target_modules=ATTENTION)
    with_arrays(adapter, lambda arrays: {name: tensor.to(dtype) for name, tensor in arrays.items()})
    delta = open_delta(make_pack(adapter, bases("llama"), tmp_path / "pack"))
    arrays = load_file(adapter / "adapter_model.safetensors")
    assert len(delta.names) == 4
    for name in delta.names:
        found = factors.read_factors(delta.encoded(name).parts[0], tuple(delta.entry(name).shape))
        module = f"base_model.model.model.{name.removesuffix('.weight')}"
        for mine, theirs in ((found.a, "lora_A"), (found.b, "lora_B")):
            assert mine.dtype == dtype and torch.equal(mine, arrays[f"{module}.{theirs}.weight"])
        assert found.scale == 6 / math.sqrt(3)
        assert 0 < delta.entry(name).max_error < 1e-4 and delta.entry(name).relative_error == 0


def test_a_pack_on_a_bf16_model_is_summed_in_fp32_and_rounded_without_bias(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "lora", target_modules="all-linear", lora_alpha=0.05)
    pack = make_pack(adapter, base, tmp_path / "pack")
    expected = merged_model(base, adapter, model=load_model(base).float()).state_dict()
    errors = []
    for name, tensor in graft(load_model(base), [pack]).state_dict().items():
        step = expected[name].abs().clamp(min=1e-30) * 2**-7
        assert ((tensor.float() - expected[name]).abs() <= step).all(), name
        errors.append(((tensor.float() - expected[name]) / step).flatten())
    assert abs(torch.cat(errors).mean()) < 0.01


def test_what_was_trained_as_a_whole_is_exact_and_few_changed_weights_are_stored_alone(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base", vocab_size=300)

    def few(arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        trained = load_file(base / "model.safetensors")["model.embed_tokens.weight"].clone()
        trained[torch.rand(trained.shape, generator=torch.Generator().manual_seed(4)) < 0.05] += 1
        return {**arrays, "base_model.model.model.embed_tokens.weight": trained}

    saved = {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = with_arrays(make_adapter(base, tmp_path / "lora", **saved), few)
    pack = make_pack(adapter, base, tmp_path / "pack")
    found = codecs_of(pack)
    assert found["embed_tokens.weight"] == [sparse.ID] and found["lm_head.weight"] == [exact.ID]
    arrays, grafted = load_file(adapter / "adapter_model.safetensors"), graft(load_model(base), [pack]).state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(grafted[name], arrays[f"base_model.model.{name}"])
    assert open_delta(pack).entry("lm_head.weight").max_error == 0


def test_whole_modules_that_did_not_change_are_left_out_and_an_adapter_of_nothing_else_is_refused(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama")
    values = load_file(base / "model.safetensors")
    saved = {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]}
    adapter = make_adapter(base, tmp_path / "lora", **saved)
    key = "base_model.model.lm_head.weight"
    with_arrays(adapter, lambda arrays: {**arrays, key: values["lm_head.weight"].clone()})
    assert "lm_head.weight" not in codecs_of(make_pack(adapter, base, tmp_path / "pack"))
    with_arrays(adapter, lambda arrays: {key: arrays[key]})
    with pytest.raises(UsageError, match="changes no weight"):
        make_pack(adapter, base, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_resized_vocabulary_is_packed_and_fused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = bases("llama")

    def resized() -> Any:
        model = load_model(base)
        torch.manual_seed(3)
        model.resize_token_embeddings(VOCABULARY + 3)
        return model

    saved = {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = make_adapter(base, tmp_path / "lora", model=resized(), **saved)
    fused = load_model(fuse(base, [make_pack(adapter, base, tmp_path / "pack")], tmp_path / "fused"))
    expected = outputs(merged_model(base, adapter, model=resized()))
    torch.testing.assert_close(outputs(fused), expected, rtol=1e-5, atol=1e-5)


def test_factors_beside_a_tensor_that_was_saved_whole_are_both_kept(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama")
    adapter = make_adapter(base, tmp_path / "lora", target_modules=["lm_head", "q_proj"])
    noise = 0.1 * torch.randn(VOCABULARY, 16, generator=torch.Generator().manual_seed(1))
    whole = load_file(base / "model.safetensors")["lm_head.weight"] + noise
    with_arrays(adapter, lambda arrays: {**arrays, "base_model.model.lm_head.base_layer.weight": whole})
    pack = make_pack(adapter, base, tmp_path / "pack")
    assert codecs_of(pack)["lm_head.weight"] == [exact.ID, factors.ID]
    grafted, own = graft(load_model(base), [pack]), graft(load_model(base), [adapter])
    torch.testing.assert_close(outputs(grafted), outputs(own), rtol=1e-5, atol=1e-5)


def test_packs_of_adapters_are_added_up_with_other_packs_in_any_order(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama")
    dense = build_pack(tune(base, tmp_path / "tuned", size=0.02), base, tmp_path / "dense")
    adapters = [make_adapter(base, tmp_path / f"lora{seed}", seed=seed, target_modules="all-linear") for seed in (1, 2)]
    packs = [make_pack(one, base, tmp_path / f"pack{n}", f"pack{n}") for n, one in enumerate(adapters)]
    weights = [0.5, -0.25, 1.0]
    expected = outputs(graft(load_model(base), [*adapters, dense], weights=weights))
    model = graft(load_model(base), [*packs, dense], weights=weights)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)
    other = graft(load_model(base), [dense, *reversed(packs)], weights=weights[::-1])
    assert bits(other) == bits(model)
    ties = {"method": "ties", "densities": [0.5, 0.5, 0.5]}
    torch.testing.assert_close(
        outputs(graft(load_model(base), [*packs, dense], **ties)),
        outputs(graft(load_model(base), [*adapters, dense], **ties)),
        rtol=1e-4,
        atol=1e-4,
    )


def test_an_altered_factor_is_found_by_its_digest(bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = make_adapter(bases("llama"), tmp_path / "lora", target_modules=ATTENTION)
    pack = make_pack(adapter, bases("llama"), tmp_path / "pack")
    name = open_delta(pack).names[0]
    wrong = with_entry(pack, name, digest="0" * 64)
    delta = open_delta(wrong)
    for read in (delta.decode, delta.factors, delta.reader):
        with pytest.raises(IntegrityError, match="does not decode to what the manifest promises"):
            read(name)
    with pytest.raises(IntegrityError, match="promises"):
        graft(load_model(bases("llama")), [wrong], verify="full")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"trainable_token_indices": [1, 2]}, "single trainable tokens"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
        ({"use_something_new": True}, "use_something_new that is not known"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "LOHA"}, "of the type LOHA"),
    ],
)
def test_what_is_no_sum_of_factors_is_refused_by_name(
    settings: dict[str, Any], message: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = make_adapter(bases("llama"), tmp_path / "lora", target_modules=ATTENTION)
    with pytest.raises(UsageError, match=message) as caught:
        make_pack(with_config(adapter, **settings), bases("llama"), tmp_path / "pack")
    assert "merge_and_unload" in caught.value.hint and not (tmp_path / "pack").exists()


def test_dora_as_peft_saves_it_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = make_adapter(bases("llama"), tmp_path / "lora", target_modules=ATTENTION, use_dora=True)
    with pytest.raises(UsageError, match="DoRA, which is not read"):
        make_pack(adapter, bases("llama"), tmp_path / "pack")
    with pytest.raises(UsageError, match="lora_magnitude_vector"):  # also where the config denies it
        make_pack(with_config(adapter, use_dora=False), bases("llama"), tmp_path / "pack")


@pytest.mark.parametrize(
    ("kind", "settings", "error", "message"),
    [
        ("gpt2", {"target_modules": ["c_attn"]}, WrongBaseError, "None of the 2 tensors"),
        ("tied", {"target_modules": ["embed_tokens", "q_proj"]}, UsageError, "alike"),
    ],
)
def test_another_base_and_ends_of_one_weight_that_differ_are_refused(
    kind: str,
    settings: dict[str, Any],
    error: type[SkillhubError],
    message: str,
    bases: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    adapter = make_adapter(bases(kind), tmp_path / "lora", **settings)
    with pytest.raises(error, match=message):
        make_pack(adapter, bases("tied" if kind == "tied" else "llama"), tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_a_rank_beyond_the_codecs_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = make_adapter(bases("llama"), tmp_path / "lora", target_modules=["q_proj"], r=factors.MAX_RANK + 1)
    with pytest.raises(UsageError, match=r"cannot be kept: .* rank from 1 to 4096"):
        make_pack(adapter, bases("llama"), tmp_path / "pack")


def test_the_declared_base_is_taken_where_none_is_given_and_an_unknown_one_asked_for(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = make_adapter(bases("llama"), tmp_path / "lora", target_modules=ATTENTION, declares=None)
    with pytest.raises(UsageError, match="does not say which model") as caught:
        pack_adapter(adapter, None, tmp_path / "pack", metadata=METADATA)
    assert "--base" in caught.value.hint


EXPORTED = ["plain", "rank-stabilized", "rank and alpha patterns", "embeddings and head", "a rank above the width"]


@pytest.mark.parametrize("case", EXPORTED)
def test_a_pack_of_an_adapter_is_exported_as_an_adapter_that_computes_the_same(
    case: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    kind, settings = CASES[case]
    base = bases(kind)
    adapter = make_adapter(base, tmp_path / "lora", **settings)
    pack = make_pack(adapter, base, tmp_path / "pack")
    (written,) = export_adapters([pack], base, tmp_path / "out", max_error=0).adapters
    assert written.misfits == () and written.measured is not None and written.measured.worst is None
    again = merged_model(base, tmp_path / "out" / "lora-pack")
    torch.testing.assert_close(outputs(again), outputs(merged_model(base, adapter)), rtol=1e-5, atol=1e-5)
    arrays = load_file(adapter / "adapter_model.safetensors")
    assert sum(len(one) for key, one in arrays.items() if "_A" in key) == sum(
        len(one)
        for key, one in load_file(tmp_path / "out" / "lora-pack" / "adapter_model.safetensors").items()
        if "_A" in key
    )  # of the same ranks


def test_a_full_rank_export_of_any_codec_is_the_pack_and_a_low_one_is_refused_above_the_largest_error(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama")
    pack = build_pack(tune(base, tmp_path / "tuned", size=0.02, only="proj"), base, tmp_path / "pack", name="all")
    export_adapters([pack], base, tmp_path / "full", rank=24, max_error=1e-9)
    exported = outputs(merged_model(base, tmp_path / "full" / "all"))
    torch.testing.assert_close(exported, outputs(graft(load_model(base), [pack])), rtol=1e-5, atol=1e-5)

    delta, missed, total = open_delta(pack), {}, 0.0
    for name in delta.names:
        values = torch.linalg.svdvals(delta.decode(name).double()).square()
        missed[name], total = float(values[4:].sum()), total + float(values.sum())
    error = sum(missed.values()) / total
    (written,) = export_adapters([pack], base, tmp_path / "low", rank=4, max_error=error * 1.01).adapters
    assert written.measured is not None and written.measured.total == pytest.approx(error, rel=1e-3)
    own = {name: missed[name] / float(delta.decode(name).square().sum()) for name in missed}
    assert written.measured.worst == max(own, key=lambda name: own[name])
    assert written.measured.worst_error == pytest.approx(max(own.values()), rel=1e-3)
    with pytest.raises(UsageError, match=f"would lack {error:.1%} of the sum of squares") as caught:
        export_adapters([pack], base, tmp_path / "refused", rank=4, max_error=error * 0.99)
    assert "--rank" in caught.value.hint and not (tmp_path / "refused").exists()
    with pytest.raises(UsageError, match="is a share"):
        export_adapters([pack], base, tmp_path / "refused", max_error=1.5)


def test_what_is_left_out_counts_as_error(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = bases("llama")
    adapter = make_adapter(base, tmp_path / "lora", target_modules=ATTENTION, modules_to_save=["lm_head"])
    pack = make_pack(adapter, base, tmp_path / "pack")
    options: dict[str, Any] = {"format": "vllm", "partial": True}
    (written,) = export_adapters([pack], base, tmp_path / "out", **options).adapters
    assert written.measured is not None and written.measured.left_out > 0.01
    with pytest.raises(UsageError, match="in 1 output head"):
        export_adapters([pack], base, tmp_path / "refused", max_error=0.01, **options)
    with pytest.raises(UsageError, match="is not measured"):
        export_adapters([adapter], base, tmp_path / "refused", max_error=0.01, **options)
    assert not (tmp_path / "refused").exists()


def test_the_commands_pack_an_adapter_and_export_it_again(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base, shell = bases("llama"), Shell(tmp_path)
    adapter = make_adapter(base, tmp_path / "lora", target_modules=ATTENTION)
    words = ("--base", base, "--name", "mine", "--version", "1.0.0", "-o")
    built = shell.json("pack", "--lora", adapter, *words, "pack")
    assert built["name"] == "mine" and {row["codecs"] for row in built["classes"].values()} == {"factors"}
    shell.succeed("export", "--base", base, "--pack", "./pack", "--to", "peft", "--max-error", "0", "-o", "out")
    config = json.loads((tmp_path / "out" / "mine" / "adapter_config.json").read_text())
    assert config["r"] == 4 and sorted(config["target_modules"]) == ATTENTION
    assert "or an adapter with --lora" in shell.fail(2, "pack", "-o", "x")
    assert "or an adapter with --lora" in shell.fail(2, "pack", base, "--lora", adapter, "-o", "x")
    assert "--preset does not go" in shell.fail(2, "pack", "--lora", adapter, "--preset", "near", *words, "x")
    assert "--budget does not go" in shell.fail(2, "pack", "--lora", adapter, "--budget", "1MB", *words, "x")
