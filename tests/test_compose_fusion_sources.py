"""Fusing whole checkpoints, plans, dtypes, tokenizers and several processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from skillhub.compose import plans, sharding
from skillhub.compose.fusion import fuse
from skillhub.compose.grafts import graft
from skillhub.compose.methods import interface
from skillhub.compose.plans import plan_fusion
from skillhub.compose.tunedcheckpoints import open_tuned
from skillhub.errors import DiskError, IntegrityError, NotFoundError, UsageError, WrongBaseError
from skillhub.fingerprint import fingerprint_checkpoint
from tests.support.peft_adapters import make_adapter
from tests.support.tiny_models import add_tokenizer, bits, build_pack, load_model, raw, rewrite, save_model, tune

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    base = save_model("llama", folder / "base")
    for number in (1, 2, 3):
        tune(base, folder / f"tuned{number}", seed=number, size=0.02)
    build_pack(folder / "tuned1", base, folder / "pack1", name="pack1")
    build_pack(folder / "tuned2", base, folder / "pack2", name="pack2", lossy=True)
    return folder


def tensors(folder: Path) -> Tensors:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(one: Tensors, other: Tensors) -> bool:
    return {name: raw(tensor) for name, tensor in one.items()} == {name: raw(tensor) for name, tensor in other.items()}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_checkpoint_of_weight_1_fuses_to_itself(llama: Path, tmp_path: Path):
    assert same(tensors(fuse(llama / "base", [llama / "tuned1"], tmp_path / "fused")), tensors(llama / "tuned1"))


def test_checkpoints_are_merged_as_their_differences_in_fp32(llama: Path, tmp_path: Path):
    weights = [0.5, -0.25]
    fused = tensors(fuse(llama / "base", [llama / "tuned1", llama / "tuned2"], tmp_path / "fused", weights=weights))
    base, one, other = (tensors(llama / name) for name in ("base", "tuned1", "tuned2"))
    first = open_tuned(llama / "tuned1").digest < open_tuned(llama / "tuned2").digest
    for name, value in base.items():
        terms = [(one[name].float() - value.float()) * 0.5, (other[name].float() - value.float()) * -0.25]
        expected = value.float() + sum(terms if first else terms[::-1])
        assert torch.equal(fused[name], expected.bfloat16())


def test_a_checkpoint_gives_what_an_exact_pack_of_it_gives(llama: Path, tmp_path: Path):
    for number, method in enumerate(("linear", "ties")):
        packed = fuse(llama / "base", [llama / "pack1"], tmp_path / f"packed{number}", weights=[1.5], method=method)
        whole = fuse(llama / "base", [llama / "tuned1"], tmp_path / f"whole{number}", weights=[1.5], method=method)
        assert same(tensors(packed), tensors(whole))


def test_packs_adapters_and_checkpoints_are_mixed(llama: Path, tmp_path: Path):
    lora = make_adapter(llama / "base", tmp_path / "lora", target_modules=["q_proj", "up_proj"])
    sources = [llama / "pack2", llama / "tuned3", lora]
    fused = tensors(fuse(llama / "base", sources, tmp_path / "fused", dtype="float32", rounding="nearest"))
    base = tensors(llama / "base")
    alone = [
        tensors(fuse(llama / "base", [source], tmp_path / str(number), dtype="float32", rounding="nearest"))
        for number, source in enumerate(sources)
    ]
    for name, value in base.items():
        total = value.float() + sum(one[name] - value.float() for one in alone)
        torch.testing.assert_close(fused[name], total, atol=1e-6, rtol=1e-6)
    card = (tmp_path / "fused" / "README.md").read_text()
    assert all(f"| {kind} |" in card for kind in ("pack", "adapter", "checkpoint"))
    assert "SkillPacks and adapters and fine-tuned checkpoints" in card


def test_a_fused_pack_of_checked_files_is_what_graft_decodes_whole(llama: Path, tmp_path: Path):
    model = load_model(llama / "base")
    graft(model, [llama / "pack1", llama / "pack2"])
    for verify in ("files", "full"):
        fused = fuse(llama / "base", [llama / "pack1", llama / "pack2"], tmp_path / verify, verify=verify)
        assert bits(load_model(fused)) == bits(model)
    with pytest.raises(UsageError, match="no verification"):
        fuse(llama / "base", [llama / "pack1"], tmp_path / "never", verify="some")


def test_what_is_equal_in_base_and_checkpoint_keeps_its_bytes_infinities_too(llama: Path, tmp_path: Path):
    def odd(values: Tensors) -> Tensors:
        norm = values["model.norm.weight"].clone()
        norm[:4] = torch.tensor([math.inf, -math.inf, math.nan, -0.0])
        return {**values, "model.norm.weight": norm}

    base = rewrite(llama / "base", tmp_path / "base", odd)
    tuned = rewrite(llama / "tuned1", tmp_path / "tuned", odd)
    fused = tensors(fuse(base, [tuned], tmp_path / "fused", weights=[0.3]))
    before = tensors(base)["model.norm.weight"]
    assert raw(fused["model.norm.weight"][:4]) == raw(before[:4])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("method", ["linear", "ties", "karcher", "arcee_fusion", "model_stock"])
def test_values_that_only_one_of_base_and_checkpoint_has_infinite_are_refused(
    value: float, method: str, llama: Path, tmp_path: Path
):
    def odd(values: Tensors) -> Tensors:
        weight = values["model.layers.0.mlp.up_proj.weight"].clone()
        weight[3, 5] = value
        return {**values, "model.layers.0.mlp.up_proj.weight": weight}

    others = [] if method == "arcee_fusion" else [llama / "tuned2"]
    for base, tuned in ((llama / "base", llama / "tuned1"), (llama / "tuned1", llama / "base")):
        changed = rewrite(tuned, tmp_path / tuned.name, odd)
        with pytest.raises(UsageError, match=r"up_proj\.weight in .* only one of them is infinite"):
            fuse(base, [changed, *others], tmp_path / "fused", method=method)
    with pytest.raises(UsageError, match="only one of them is infinite"):
        fuse(rewrite(llama / "base", tmp_path / "odd", odd), [llama / "tuned1", *others], tmp_path / "fused")
    assert not (tmp_path / "fused").exists()


def test_a_base_in_fp64_is_merged_in_fp64(llama: Path, tmp_path: Path):
    double = lambda values: {name: value.double() + 1e-12 for name, value in values.items()}  # noqa: E731
    base = rewrite(llama / "base", tmp_path / "base", double)
    tuned = rewrite(llama / "tuned1", tmp_path / "tuned", double)
    fused = tensors(fuse(base, [tuned], tmp_path / "fused"))
    for name, value in tensors(base).items():
        assert torch.equal(fused[name], value + (tensors(tuned)[name] - value).float().double())


def test_added_tokens_of_a_checkpoint_bring_their_tokenizer(llama: Path, tmp_path: Path):
    def longer(values: Tensors) -> Tensors:
        vocabulary = len(values["lm_head.weight"])
        return {
            name: torch.cat([value, value[:2]]) if len(value) == vocabulary else value for name, value in values.items()
        }

    base = rewrite(llama / "base", tmp_path / "base", dict)
    tuned = [rewrite(llama / f"tuned{number}", tmp_path / f"tuned{number}", longer) for number in (1, 2)]
    add_tokenizer(base)
    for folder in tuned:
        add_tokenizer(folder)
        text = (folder / "tokenizer.json").read_text().replace('"t":', '"<new>":')
        (folder / "tokenizer.json").write_text(text)
    (base / "chat_template.jinja").write_text("the base's")
    said: list[str] = []
    fused = fuse(base, tuned, tmp_path / "fused", weights=[0.5, 0.5], notice=said.append)
    assert (fused / "tokenizer.json").read_bytes() == (tuned[0] / "tokenizer.json").read_bytes()
    assert not (fused / "chat_template.jinja").exists()
    assert any("and so is the tokenizer" in sentence for sentence in said)
    model = load_model(fused)
    assert model.config.vocab_size == 28 == len(model.get_input_embeddings().weight)
    kept = fuse(base, tuned[:1], tmp_path / "kept", tokenizer="base", notice=said.append)
    assert (kept / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    (tuned[1] / "tokenizer.json").write_text(text.replace("<new>", "<other>"))
    with pytest.raises(UsageError, match="several of them resize it"):
        fuse(base, tuned, tmp_path / "never")
    pack = build_pack(tuned[0], base, tmp_path / "pack")
    fuse(base, [pack], tmp_path / "of-pack", notice=said.append)
    assert "the tokenizer is still the base's" in said[-1]


def test_a_vocabulary_may_grow_by_more_rows_than_a_chunk(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def longer(values: Tensors) -> Tensors:
        names = ("model.embed_tokens.weight", "lm_head.weight")
        return {name: torch.cat([value, value[:20]]) if name in names else value for name, value in values.items()}

    tuned = rewrite(llama / "tuned1", tmp_path / "tuned", longer)
    monkeypatch.setattr(interface, "CHUNK", 64)  # four rows: the 26 of the base end within a chunk
    pack = build_pack(tuned, llama / "base", tmp_path / "pack")
    for number, source in enumerate((tuned, pack)):
        assert same(tensors(fuse(llama / "base", [source], tmp_path / f"fused{number}")), tensors(tuned))


def test_the_tokenizer_and_chat_template_of_a_named_checkpoint_are_taken(llama: Path, tmp_path: Path):
    tuned = rewrite(llama / "tuned1", tmp_path / "tuned", dict)
    add_tokenizer(tuned)
    (tuned / "chat_template.jinja").write_text("{{ messages }}")
    (tuned / "generation_config.json").write_text('{"eos_token_id": 7}')
    said: list[str] = []
    fused = fuse(llama / "base", [tuned], tmp_path / "auto", notice=said.append)
    assert not (fused / "chat_template.jinja").exists() and "has a chat template" in said[-1]
    fused = fuse(llama / "base", [llama / "tuned2"], tmp_path / "named", tokenizer=tuned)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (fused / name).read_bytes() == (tuned / name).read_bytes()
    with pytest.raises(UsageError, match="has no tokenizer"):
        fuse(llama / "base", [tuned], tmp_path / "never", tokenizer=llama / "tuned2")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_dtype_is_rounded_to_once_and_the_config_says_so(llama: Path, tmp_path: Path, dtype: str):
    fused = fuse(llama / "base", [llama / "tuned1"], tmp_path / "fused", weights=[0.5], dtype=dtype)
    base, tuned, found = tensors(llama / "base"), tensors(llama / "tuned1"), tensors(fused)
    for name, value in base.items():
        expected = value.float() + (tuned[name].float() - value.float()) * 0.5
        assert torch.equal(found[name], expected.to(getattr(torch, dtype)))
    assert json.loads((fused / "config.json").read_text())["dtype"] == dtype
    assert load_model(fused).dtype == getattr(torch, dtype)


def test_untouched_tensors_take_the_other_dtype_too_and_integers_do_not(llama: Path, tmp_path: Path):
    base = rewrite(llama / "base", tmp_path / "base", lambda values: {**values, "steps": torch.tensor([7])})
    pack = build_pack(tune(base, tmp_path / "tuned", only="mlp"), base, tmp_path / "pack")
    found = tensors(fuse(base, [pack], tmp_path / "fused", dtype="float32"))
    assert {value.dtype for name, value in found.items() if name != "steps"} == {torch.float32}
    assert found["steps"].tolist() == [7] and torch.equal(
        found["model.norm.weight"], tensors(base)["model.norm.weight"].float()
    )


def test_a_value_that_the_other_dtype_cannot_hold_is_refused_in_untouched_tensors_too(llama: Path, tmp_path: Path):
    def large(values: Tensors) -> Tensors:
        return {**values, "model.norm.weight": values["model.norm.weight"].clone().fill_(1e5)}

    base = rewrite(llama / "base", tmp_path / "base", large)
    pack = build_pack(tune(base, tmp_path / "tuned", only="mlp"), base, tmp_path / "pack")
    for source in (pack, tmp_path / "tuned"):
        with pytest.raises(UsageError, match=r"norm.weight would have values that torch.float16 cannot hold"):
            fuse(base, [source], tmp_path / "fused", dtype="float16")
    assert not (tmp_path / "fused").exists()


def test_a_damaged_config_is_told_before_a_weight_is_read(llama: Path, tmp_path: Path):
    base = rewrite(llama / "base", tmp_path / "base", dict)
    for text in ("{", "[]", "[" * 100_000):
        (base / "config.json").write_text(text)
        with pytest.raises(IntegrityError, match=r"config\.json is not a JSON object"):
            plan_fusion(base, [llama / "tuned1"])


def test_a_layer_of_5000_digits_is_none(llama: Path, tmp_path: Path):
    odd = rewrite(llama / "base", tmp_path / "odd", lambda values: {**values, f"layers.{'9' * 5000}.x": torch.ones(2)})
    assert [one.layers for one in plan_fusion(odd, [odd], weights=[[0.0, 1.0]]).contributions] == [2]


def test_a_folder_s_name_means_nothing_in_the_card(llama: Path, tmp_path: Path):
    odd = rewrite(llama / "tuned1", tmp_path / "a|b\n---\nlicense: mit <i> `x` [y]", dict)
    card = (fuse(llama / "base", [odd], tmp_path / "fused") / "README.md").read_text()
    name = r"a\|b --- license: mit \<i\> \`x\` \[y\]"
    assert f"# base with {name}\n" in card and f"\n| {name} | checkpoint |" in card and card.count("\n---\n") == 1


def test_positions_and_layers_of_another_size_are_refused(tmp_path: Path):
    base = save_model("gpt2", tmp_path / "base")
    for number, part in enumerate(("wpe", "h.0.mlp.c_fc.weight", "h.1.ln_1.bias")):
        longer = lambda values, part=part: {  # noqa: E731
            name: torch.cat([value, value]) if part in name else value for name, value in values.items()
        }
        with pytest.raises(WrongBaseError, match=rf"{part}.* is \[.*\] in tuned{number} and"):
            fuse(base, [rewrite(base, tmp_path / f"tuned{number}", longer)], tmp_path / "fused")


def test_a_pattern_that_matches_nothing_is_told(llama: Path, tmp_path: Path):
    (error,) = plan_fusion(llama / "base", [llama / "pack1"], weights=[{"mpl": 0.5, "": 1}]).problems
    assert "'mpl', in the weight of pack1" in error.message
    plan = plan_fusion(llama / "base", [llama / "tuned1"], method="ties", densities=[{"mlp": 0.5, "lm_haed": 1}])
    assert ["'lm_haed', in the density" in error.message for error in plan.problems] == [True]


def test_a_plan_names_everything_that_would_fail_and_reads_no_weight(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def misshapen(values: Tensors) -> Tensors:
        name = "model.layers.0.mlp.up_proj.weight"
        return {**values, name: torch.zeros(24, 8), "model.layers.1.mlp.up_proj.bias": torch.zeros(24)}

    bad = rewrite(llama / "tuned1", tmp_path / "bad", misshapen)
    other = tmp_path / "other"
    other.mkdir()
    save_file({"something.else": torch.zeros(3)}, other / "model.safetensors")
    plan = plan_fusion(llama / "base", [bad, other, llama / "tuned2"])
    texts = [error.message for error in plan.problems]
    assert any("[24, 8] in bad" in text for text in texts)
    assert any("adds layers.1.mlp.up_proj.bias" in text for text in texts)
    assert any("tensors of other is in this model" in text for text in texts)
    with pytest.raises(UsageError, match=r"Also: .*bad"):
        fuse(llama / "base", [bad, other, llama / "tuned2"], tmp_path / "out" / "fused")
    assert not (tmp_path / "out").exists()


def test_a_plan_tells_bytes_files_and_memory(llama: Path, tmp_path: Path):
    plan = plan_fusion(llama / "base", [llama / "tuned1", llama / "pack1"], shard_bytes=4000)
    assert plan.problems == () and plan.passes == 1
    fused = fuse(llama / "base", [llama / "tuned1", llama / "pack1"], tmp_path / "fused", shard_bytes=4000)
    assert [shard.file for shard in plan.shards] == [file.name for file in sorted(fused.glob("*.safetensors"))]
    assert plan.write_bytes == sum(value.nbytes for value in tensors(fused).values())
    assert plan.read_bytes > 2 * plan.write_bytes
    assert plan_fusion(llama / "base", [llama / "tuned1"], method="ties", densities=[0.5]).passes > 1


def test_a_base_that_was_not_fingerprinted_is_not_read_for_a_plan(llama: Path, tmp_path: Path):
    base = rewrite(llama / "base", tmp_path / "base", dict)
    plan = plan_fusion(base, [llama / "pack1"])
    assert plan.fingerprint is None and not plan.is_verified and not plan.problems
    os.utime(base / "model.safetensors", (1, 1))
    found = fingerprint_checkpoint(base).fingerprint
    assert plan_fusion(base, [llama / "pack1"]).fingerprint == found
    os.utime(llama / "tuned1" / "model.safetensors", (1, 1))
    fingerprint_checkpoint(llama / "tuned1")
    (error,) = plan_fusion(llama / "tuned1", [llama / "pack1"]).problems
    assert isinstance(error, WrongBaseError) and "does not fit" in error.message


def test_too_little_disk_is_said_before_anything_is_written(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = plans.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(plans.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskError, match="1000 are free"):
        fuse(llama / "base", [llama / "tuned1"], tmp_path / "out" / "fused")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_not_grafted_and_a_folder_without_weights_is_none(llama: Path, tmp_path: Path):
    with pytest.raises(NotFoundError, match="is not a pack"):
        fuse(llama / "base", [tmp_path], tmp_path / "out")
    with pytest.raises(UsageError, match="twice"):
        fuse(llama / "base", [llama / "tuned1", llama / "tuned1"], tmp_path / "out")
    with pytest.raises(NotFoundError):
        fuse(llama / "base", ["checkpoint:./nowhere"], tmp_path / "out")


def test_files_are_shared_out_evenly_and_each_goes_to_one_rank(llama: Path):
    from skillhub.ranks import Ranks

    shards = [
        sharding.Shard(str(size), (sharding.FusedTensor(str(size), "U8", (size,), None),)) for size in (9, 1, 5, 4, 8)
    ]
    own = [sharding.own_shards(Ranks(rank, 2), shards) for rank in range(2)]
    assert sorted(shard.file for part in own for shard in part) == sorted(shard.file for shard in shards)
    assert [sum(shard.nbytes for shard in part) for part in own] == [14, 13]


_WORKER = """
import sys
from skillhub.compose.fusion import fuse
base, out, *packs = sys.argv[1:]
fuse(base, packs, out, shard_bytes=4000, notice=print)
"""


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    worker = tmp_path / "worker.py"
    worker.write_text(_WORKER)

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(worker)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        return subprocess.run(
            [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_two_processes_write_the_bytes_that_one_writes(
    llama: Path, tmp_path: Path, torchrun: Callable[..., subprocess.CompletedProcess[str]]
):
    sources = [llama / "tuned1", llama / "pack2"]
    alone = fuse(llama / "base", sources, tmp_path / "alone", shard_bytes=4000)
    done = torchrun(llama / "base", tmp_path / "out" / "together", *sources)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out" / "together") == files(alone)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["together"]


def test_a_process_that_fails_leaves_nothing(
    llama: Path, tmp_path: Path, torchrun: Callable[..., subprocess.CompletedProcess[str]]
):
    pack = build_pack(llama / "tuned1", llama / "base", tmp_path / "pack")
    file = next(pack.folder.rglob("delta-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    done = torchrun(llama / "base", tmp_path / "out" / "together", pack.folder)
    assert done.returncode != 0 and "was altered" in done.stderr
    assert not (tmp_path / "out").exists()


def test_adapters_are_summed_in_one_product_and_packs_beside_them(llama: Path, tmp_path: Path):
    loras = [
        make_adapter(
            llama / "base", tmp_path / f"lora{seed}", seed=seed, r=rank, target_modules=["q_proj", "down_proj"]
        )
        for seed, rank in ((1, 2), (2, 5))
    ]
    weights, keep = [0.5, -1.0, 2.0], {"dtype": "float32", "rounding": "nearest"}
    together = tensors(fuse(llama / "base", [*loras, llama / "pack1"], tmp_path / "fused", weights=weights, **keep))
    expected = {name: value.float() for name, value in tensors(llama / "base").items()}
    for number, source in enumerate([*loras, llama / "pack1"]):
        alone = tensors(fuse(llama / "base", [source], tmp_path / str(number), **keep))
        for name, value in tensors(llama / "base").items():
            expected[name] += (alone[name] - value.float()) * weights[number]
    for name, value in expected.items():
        torch.testing.assert_close(together[name], value, atol=1e-5, rtol=1e-5)
