"""Building packs from checkpoints: what is stored how, and what comes back out of fuse and graft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from skillhub.adapterpacker import pack_adapter
from skillhub.authorfile import AuthorFile
from skillhub.bfloat16 import FLOATS
from skillhub.budgets import TOLERANCE
from skillhub.checkpoints import DTYPES, open_checkpoint
from skillhub.codecs import allocation
from skillhub.compose.fusion import fuse
from skillhub.compose.grafts import graft
from skillhub.errors import UsageError, WrongBaseError
from skillhub.manifest import Skill
from skillhub.packdeltas import open_delta
from skillhub.packer import pack
from skillhub.packs import Pack, open_pack
from skillhub.tensorfiles import write_tensors
from tests.support.tiny_models import add_tokenizer, load_model, raw, rewrite, save_model, tune

METADATA = AuthorFile(name="tiny-pack", version="1.0.0")
INFINITY, NAN = float("inf"), float("nan")
GROWN = "embed_tokens.weight"
"""A tensor that may have other rows than the base."""

Tensors = dict[str, torch.Tensor]


def save(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def stored(folder: Path) -> dict[str, bytes]:
    return {name: raw(tensor) for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def fused(tmp_path: Path, base: Tensors, tuned: Tensors) -> dict[str, bytes]:
    """Pack the difference of two checkpoints and fuse it into the first."""
    folders = save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    built = pack(folders[1], folders[0], tmp_path / "pack", metadata=METADATA)
    return stored(fuse(folders[0], [built], tmp_path / "fused"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("before", [0.5, INFINITY, -INFINITY, NAN])
@pytest.mark.parametrize("after", [1.5, INFINITY, -INFINITY, NAN])
def test_values_that_are_not_finite_come_back_as_they_were(
    tmp_path: Path, dtype: torch.dtype, before: float, after: float
) -> None:
    base = {"w": torch.tensor([1.0, before, 2.0], dtype=dtype), "other": torch.ones(2, dtype=dtype)}
    tuned = {"w": torch.tensor([1.5, after, 2.0], dtype=dtype), "other": torch.ones(2, dtype=dtype)}
    assert fused(tmp_path, base, tuned) == {name: raw(tensor) for name, tensor in tuned.items()}


def test_a_difference_that_fp32_cannot_hold_is_stored_as_the_tuned_values(tmp_path: Path) -> None:
    base, tuned = {"w": torch.tensor([3e38, 1.0])}, {"w": torch.tensor([-3e38, 1.0])}
    assert fused(tmp_path, base, tuned) == {"w": raw(tuned["w"])}


def test_a_model_with_values_that_are_not_finite_is_grafted_to_the_bit(tmp_path: Path) -> None:
    norm = "model.layers.0.input_layernorm.weight"

    def broken(tensors: Tensors) -> Tensors:
        values = tensors[norm].clone()
        values[:3] = torch.tensor([INFINITY, -INFINITY, NAN])
        return {**tensors, norm: values}

    base = rewrite(save_model("llama", tmp_path / "plain"), tmp_path / "base", broken)
    tuned = tune(base, tmp_path / "tuned", only="norm", size=0.05)
    built = pack(tuned, base, tmp_path / "pack", metadata=METADATA)
    assert open_delta(built).sets_values(norm.removeprefix("model."))
    model = load_model(base)
    graft(model, [built])
    assert raw(model.get_parameter(norm)) == stored(tuned)[norm] != stored(base)[norm]
    assert stored(fuse(base, [built], tmp_path / "fused")) == stored(tuned)


def test_untouched_elements_of_an_fp64_base_stay(tmp_path: Path) -> None:
    base = {"w": torch.rand(6, 5, dtype=torch.float64), GROWN: torch.rand(3, 2, dtype=torch.float64)}
    tuned = {"w": base["w"].clone(), GROWN: torch.cat([base[GROWN], torch.ones(1, 2, dtype=torch.float64)])}
    tuned["w"][2, 3] += 2.0**-40
    assert fused(tmp_path, base, tuned) == {name: raw(tensor) for name, tensor in tuned.items()}


@pytest.mark.parametrize(
    ("before", "after"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")]
)
def test_a_lossless_pack_restores_a_fine_tune_of_another_dtype(tmp_path: Path, before: str, after: str) -> None:
    """What is the base's but for rounding, or has its values in another dtype, too."""
    dtypes = getattr(torch, before), getattr(torch, after)
    values = torch.randn(24, 16, generator=torch.Generator().manual_seed(1)).to(dtypes[0])
    base = {"rounded": values, "moved": values.clone(), "same": torch.ones(7, dtype=dtypes[0])}
    tuned = {name: one.to(dtypes[1]) for name, one in base.items()}
    tuned["moved"] += 0.25
    folders = save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    built = pack(folders[1], folders[0], tmp_path / "pack", metadata=METADATA, preset="lossless")
    delta = open_delta(built, base=open_checkpoint(folders[0]))
    found = {name: delta.restored(name) for name in delta.names}
    assert {name: (one.dtype, raw(one)) for name, one in found.items()} == {
        name: (one.dtype, raw(one)) for name, one in tuned.items()
    }
    assert stored(fuse(folders[0], [built], tmp_path / "fused", dtype=after)) == stored(folders[1])
    near = pack(folders[1], folders[0], tmp_path / "near", metadata=METADATA)
    assert open_delta(near).names == ["moved"]


@pytest.mark.parametrize("tag", sorted(set(DTYPES) - FLOATS))
def test_values_of_every_other_dtype_come_back_as_they_were(tmp_path: Path, tag: str) -> None:
    def values(seed: int) -> torch.Tensor:
        data = torch.randint(2, (48,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        return data.view(DTYPES[tag]).reshape(3, -1)

    base = {GROWN: values(1), "other": torch.ones(2)}
    tuned = {GROWN: torch.cat([values(2).view(torch.uint8)] * 2).view(DTYPES[tag]), "other": torch.ones(2)}
    assert fused(tmp_path, base, tuned) == {name: raw(tensor) for name, tensor in tuned.items()}


@pytest.mark.parametrize("one", [torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.int8])
@pytest.mark.parametrize("other", [torch.float8_e5m2, torch.float16, torch.float64, torch.uint8])
def test_a_fine_tune_may_have_another_dtype(tmp_path: Path, one: torch.dtype, other: torch.dtype) -> None:
    for number, (before, after) in enumerate([(one, other), (other, one)]):
        base = {"w": torch.tensor([1.0, 2.0, 4.0]).to(before), "other": torch.ones(2)}
        tuned = {"w": torch.tensor([1.0, 3.0, 0.0]).to(after), "other": torch.ones(2)}
        found = fused(tmp_path / str(number), base, tuned)["w"]
        assert found in (raw(tuned["w"]), raw(tuned["w"].to(before)))


def test_only_a_vocabulary_may_have_other_rows(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"w": torch.zeros(2, 3), "other": torch.ones(2)})
    tuned = save(tmp_path / "tuned", {"w": torch.zeros(4, 3), "other": torch.ones(2)})
    with pytest.raises(WrongBaseError, match=r"w is \[2, 3\] in the base and \[4, 3\]"):
        pack(tuned, base, tmp_path / "pack", metadata=METADATA)


def test_a_reshaped_tensor_is_another_base_whatever_its_dtype(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"w": torch.arange(6).reshape(2, 3), "other": torch.ones(2)})
    tuned = save(tmp_path / "tuned", {"w": torch.arange(6).reshape(3, 2), "other": torch.ones(2)})
    with pytest.raises(WrongBaseError, match=r"w is \[2, 3\] in the base and \[3, 2\]"):
        pack(tuned, base, tmp_path / "pack", metadata=METADATA)


def test_a_dtype_that_a_pack_cannot_hold_is_refused(tmp_path: Path) -> None:
    folders = [tmp_path / "base", tmp_path / "tuned"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        specs = {"w": ("F4", (4,)), "other": ("U8", (1,))}
        write_tensors(folder / "model.safetensors", specs, [bytes([number, 2]), b"x"], {})
    with pytest.raises(UsageError, match="w is stored as F4, which a pack cannot hold"):
        pack(folders[1], folders[0], tmp_path / "pack", metadata=METADATA)


def payload(built: Pack) -> int:
    return sum(entry.bytes for entry in built.manifest.variants[0].codec.tensors.values())


@settings(max_examples=8)
@given(
    budget=st.integers(3_000, 60_000),
    share=st.floats(0, 0.02),
    size=st.sampled_from([0.0, 0.01, 0.1, 3.0]),
    decay=st.floats(0.1, 2),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_a_budget_is_kept_whatever_rows_stand_out(
    tmp_path_factory: pytest.TempPathFactory, budget: int, share: float, size: float, decay: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(budget)
    spectrum = torch.arange(1, 65).float().pow(-decay)
    change = 1e-3 * (torch.randn(2000, 64, generator=generator) * spectrum) @ torch.randn(64, 96, generator=generator)
    outliers = torch.randperm(2000, generator=generator)[: int(share * 2000)]
    change[outliers] += size * torch.randn(len(outliers), 96, generator=generator)
    base = {"w": torch.zeros(2000, 96, dtype=dtype), "ids": torch.arange(10), "norm": torch.ones(50, dtype=dtype)}
    tuned = {"w": change.to(dtype), "ids": torch.arange(10) + 1, "norm": torch.rand(50, generator=generator).to(dtype)}
    folder = tmp_path_factory.mktemp("budget")
    folders = save(folder / "base", base), save(folder / "tuned", tuned)
    built = pack(folders[1], folders[0], folder / "pack", metadata=METADATA, budget_bytes=budget)
    assert payload(built) <= (1 + TOLERANCE) * budget
    assert len(list((folder / "pack").rglob("delta-*"))) == 1


def test_a_budget_that_is_too_small_is_named_with_the_least_that_will_do(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"ids": torch.zeros(5000, dtype=torch.int64), "norm": torch.zeros(500)})
    changed = {"ids": torch.randint(1 << 60, (5000,)), "norm": torch.rand(500)}
    tuned = save(tmp_path / "tuned", changed)
    with pytest.raises(UsageError, match="A budget of 1000 bytes is too small") as caught:
        pack(tuned, base, tmp_path / "pack", metadata=METADATA, budget_bytes=1000)
    least = caught.value.details["minimum"]
    assert f"at least {least} bytes" in str(caught.value.hint) and not (tmp_path / "pack").exists()
    with pytest.raises(UsageError, match="too small"):
        pack(tuned, base, tmp_path / "pack", metadata=METADATA, budget_bytes=least - 1)
    assert payload(pack(tuned, base, tmp_path / "pack", metadata=METADATA, budget_bytes=least)) == least


def test_where_the_pack_goes_is_settled_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save(tmp_path / "base", {"w": torch.zeros(2)})
    tuned = save(tmp_path / "tuned", {"w": torch.ones(2)})
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for out in (".", "../empty", empty):
        with pytest.raises(UsageError, match="is the working folder"):
            pack(tuned, "no-such-base", out, metadata=METADATA)
        with pytest.raises(UsageError, match="is the working folder"):
            fuse("no-such-base", ["no-such-pack"], out)
    with pytest.raises(UsageError, match="not an empty folder"):
        pack(tuned, "no-such-base", "..", metadata=METADATA)
    built = pack(tuned, base, "~/packs/one", metadata=METADATA)
    assert built.folder == tmp_path / "home" / "packs" / "one"
    assert fuse(base, [built], "../empty/inside/../fused") == empty / "fused"
    assert sorted(path.name for path in empty.iterdir()) == ["fused"]


def test_a_base_that_is_one_file_tells_as_much_as_its_folder(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    add_tokenizer(base)
    tuned = tune(base, tmp_path / "tuned")
    built = [
        pack(tuned, source, tmp_path / name, metadata=METADATA)
        for name, source in (("one", base), ("two", base / "model.safetensors"))
    ]
    assert built[0].manifest.variants[0].base == built[1].manifest.variants[0].base
    assert built[1].manifest.variants[0].base.tokenizer and built[1].manifest.variants[0].base.architecture


def test_tensors_that_are_added_to_layers_cannot_be_packed_but_heads_can(tmp_path: Path) -> None:
    base = {"model.layers.0.w": torch.ones(3), "model.embed_tokens.weight": torch.ones(4, 2)}
    head = {"score.weight": torch.rand(2, 2), "lm_head.weight": torch.rand(4, 2)}
    assert fused(tmp_path / "head", base, {**base, **head}).keys() == base.keys() | head.keys()
    more = {f"model.layers.{number}.{name}": torch.rand(3) for number in (0, 1) for name in ("b", "c")}
    folders = save(tmp_path / "base", base), save(tmp_path / "tuned", {**base, **more})
    expected = r"adds layers\.0\.b, layers\.0\.c, layers\.1\.b and 1 more in the layers: its architecture"
    with pytest.raises(UsageError, match=expected) as caught:
        pack(folders[1], folders[0], tmp_path / "pack", metadata=METADATA)
    assert "fuse" not in caught.value.hint and not (tmp_path / "pack").exists()


def test_a_fine_tune_without_some_of_the_layers_cannot_be_packed(tmp_path: Path) -> None:
    whole = {f"model.layers.{number}.w": torch.rand(3) for number in range(3)}
    pruned = {name: value for name, value in whole.items() if ".2." not in name}
    folders = save(tmp_path / "base", whole), save(tmp_path / "tuned", pruned)
    with pytest.raises(UsageError, match=r"lacks layers\.2\.w in the layers"):
        pack(folders[1], folders[0], tmp_path / "pack", metadata=METADATA)


def test_a_tensor_name_that_no_manifest_holds_is_the_authors_to_correct(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"a\nb": torch.zeros(3), "c": torch.zeros(3)})
    tuned = save(tmp_path / "tuned", {"a\nb": torch.ones(3), "c": torch.zeros(3)})
    with pytest.raises(UsageError, match="It contains control characters") as caught:
        pack(tuned, base, tmp_path / "pack", metadata=METADATA)
    assert caught.value.hint == "Rename the tensor in the checkpoint." and not (tmp_path / "pack").exists()


@pytest.mark.parametrize("preset", ["bitdelta", "delta-come", "graftllm", "svd-lora"])
def test_a_recipe_packs_a_whole_model(preset: str, tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base", dtype=torch.float32)
    tuned = tune(base, tmp_path / "tuned")
    built = pack(tuned, base, tmp_path / "pack", metadata=METADATA, preset=preset)
    codec = built.only_variant().codec
    assert codec.preset == preset
    before, expected = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    found = load_file(fuse(base, [built], tmp_path / "fused", verify="full") / "model.safetensors")
    for name, tensor in expected.items():
        entry, change = codec.tensors[name.removeprefix("model.")], tensor - before[name]
        error = float((found[name] - tensor).square().sum() / change.square().sum())
        assert error == pytest.approx(entry.relative_error, rel=1e-3, abs=1e-9), name
        is_kept = tensor.dim() == 1 or (preset in ("bitdelta", "delta-come") and ("embed" in name or "head" in name))
        assert (error < 1e-9) == is_kept, name


def test_a_recipes_options_are_noted(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned")
    built = pack(tuned, base, tmp_path / "pack", metadata=METADATA, preset="svd-lora", recipe_options={"rank": 2})
    assert built.manifest.provenance["recipe_options"] == "rank=2"
    delta = open_delta(built)
    assert delta.encoded("layers.0.mlp.up_proj.weight").parts[0].config["rank"] == 2


def test_a_recipe_keeps_new_tokens_and_values_that_are_set(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    base = {GROWN: torch.rand(30, 8, generator=generator), "w": torch.rand(20, 8, generator=generator)}
    ids = torch.arange(4)
    tuned = {name: tensor + 1e-3 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    tuned[GROWN] = torch.cat([tuned[GROWN], torch.ones(2, 8)])
    folders = save(tmp_path / "base", {**base, "ids": ids}), save(tmp_path / "tuned", {**tuned, "ids": ids + 1})
    built = pack(
        folders[1], folders[0], tmp_path / "pack", metadata=METADATA, preset="svd-lora", recipe_options={"rank": 1}
    )
    found = load_file(fuse(folders[0], [built], tmp_path / "fused") / "model.safetensors")
    assert torch.equal(found["ids"], ids + 1)
    torch.testing.assert_close(found[GROWN], tuned[GROWN], rtol=0, atol=1e-7)
    assert not torch.allclose(found["w"], tuned["w"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "huge"}, "no preset 'huge'"),
        ({"recipe_options": {"rank": 3}}, "none was chosen"),
        ({"preset": "svd-lora", "budget_bytes": 10_000}, "svd-lora has no size to choose"),
        ({"preset": "lossless", "budget_bytes": 10_000}, "lossless has no size to choose"),
        ({"preset": "svd-lora", "recipe_options": {"rank": "x"}}, "cannot be x"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        pack("no-such-model", "no-such-base", tmp_path / "pack", metadata=METADATA, **given)
    assert caught.value.hint and not (tmp_path / "pack").exists()


@pytest.mark.parametrize("text", ["", " \n", "half \ud83d of one", None])
@pytest.mark.parametrize("packs", [pack, pack_adapter])
def test_which_prompt_is_no_text_is_said_before_anything_is_read(
    tmp_path: Path, packs: Callable[..., Pack], text: Any
) -> None:
    prompts = ["1 + 1 = ?", text]
    with pytest.raises(UsageError, match=r"^Prompt 2 ") as caught:
        packs("no-such-model", "no-such-base", tmp_path / "pack", metadata=METADATA, prompts=prompts)
    assert caught.value.hint and not (tmp_path / "pack").exists()
    metadata = AuthorFile(name="tiny-pack", version="1.0.0", skills=Skill(prompts=prompts))
    with pytest.raises(UsageError, match=r"^Example prompt 2 "):
        packs("no-such-model", "no-such-base", tmp_path / "pack", metadata=metadata)
    with pytest.raises(UsageError, match="one text"):
        packs("no-such-model", "no-such-base", tmp_path / "pack", metadata=METADATA, prompts="1 + 1 = ?")


def test_a_fine_tune_that_changes_few_weights_is_packed_to_the_bit_in_few_bytes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(7)
    base = {f"layers.{i}.weight": 0.02 * torch.randn(256, 192, generator=generator).bfloat16() for i in range(3)}
    tuned = {
        name: torch.where(torch.rand(one.shape, generator=generator) < 0.02, one * (1 + 2**-7), one)
        for name, one in base.items()
    }
    assert fused(tmp_path, base, tuned) == {name: raw(tensor) for name, tensor in tuned.items()}
    built = open_pack(tmp_path / "pack")
    entries = built.only_variant().codec.tensors.values()
    assert all(entry.codecs == ["lossless"] and entry.relative_error == 0 for entry in entries)
    assert payload(built) < sum(one.nbytes for one in base.values()) / 45


@pytest.mark.parametrize("more", [0.0, 1e-5])
def test_a_budget_is_used_where_the_first_price_left_some_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    change = 1e-3 * torch.randn(400, 300, generator=generator)
    base = save(tmp_path / "base", {"w": torch.zeros(400, 300)})
    tuned = save(tmp_path / "tuned", {"w": change})
    # An analysis that takes all for half as large again as it is, and what is large for more than that.
    estimate = allocation._estimate_bits
    monkeypatch.setattr(allocation, "_estimate_bits", lambda *args: estimate(*args) * (1.5 + more * estimate(*args)))
    built = pack(tuned, base, tmp_path / "pack", metadata=METADATA, budget_bytes=20_000)
    assert 0.9 * 20_000 <= payload(built) <= (1 + TOLERANCE) * 20_000


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small model and a fine-tune of it, large enough that a preset's size buys something."""
    folder = tmp_path_factory.mktemp("pair")
    sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    base = save_model("tied", folder / "base", initializer_range=0.1, **sizes)
    return base, tune(base, folder / "tuned", size=0.01)


def kept(built: Pack) -> set[str]:
    return {name for name, entry in built.only_variant().codec.tensors.items() if entry.relative_error < 1}


def test_what_is_stored_as_it_is_does_not_take_the_rest_s_bytes_and_is_told(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """A head of its own, or one NaN, once left every other matrix nothing, without a word."""
    base, tuned = pair
    name, other = "layers.1.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"

    def spoil(tensors: Tensors) -> Tensors:
        tensors[f"model.{name}"][0, 0] = NAN
        return tensors

    told: list[str] = []
    plain = pack(tuned, base, tmp_path / "plain", metadata=METADATA, notice=told.append)
    assert not told and other in kept(plain)
    broken = rewrite(tuned, tmp_path / "broken", spoil)
    built = pack(broken, base, tmp_path / "pack", metadata=METADATA, notice=told.append)
    assert kept(plain) - {name} <= kept(built)
    assert len(told) == 1 and name in told[0] and "no numbers" in told[0]


def test_a_base_of_other_weights_is_doubted(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, tuned = pair
    sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    other = save_model("tied", tmp_path / "other", initializer_range=0.1, seed=7, **sizes)
    told: list[str] = []
    pack(tuned, other, tmp_path / "pack", metadata=METADATA, notice=told.append)
    assert any(f"Is {other} what the fine-tune started from?" in text for text in told)
