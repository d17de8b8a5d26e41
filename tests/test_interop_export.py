from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from skillhub import packer
from skillhub.adapters import open_adapter
from skillhub.authorfile import AuthorFile
from skillhub.checkpoints import open_checkpoint
from skillhub.codecs import EncodedTensor, decode, exact, lowrank, rows, zero
from skillhub.codecs.allocation import analyse, encode
from skillhub.compose.grafts import graft
from skillhub.errors import UsageError, WrongBaseError
from skillhub.exporter import export_adapters
from skillhub.interop.adapterdeltas import Target, open_adapter_delta
from skillhub.interop.factors import read_changes
from skillhub.interop.launching import RANKS, launch_script
from skillhub.interop.modules import empty_model, modules_of
from skillhub.interop.products import nearest_product, product_of, product_rank
from skillhub.packdeltas import open_delta
from skillhub.packs import Pack, open_pack
from tests.support.commands import Shell
from tests.support.peft_adapters import make_adapter, merged_model
from tests.support.tiny_models import KINDS, VOCABULARY, build_pack, load_model, make_model, rewrite, save_model, tune

WIDE: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 24,
}
"""So that every matrix has over 4096 elements: a pack stores smaller ones as they are, not as components."""
BERT = {"hidden_size": 96, "intermediate_size": 112}
T5 = {"d_model": 96, "d_kv": 24, "d_ff": 112}

CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "Llama": ("llama", {**WIDE, "vocab_size": 64}, ("_proj.weight", "lm_head.weight", "embed_tokens", "norm")),
    "Llama, tied": ("tied", {**WIDE, "vocab_size": 64}, ("_proj.weight", "embed_tokens", "layernorm")),
    "Qwen2": ("qwen2", WIDE, ("_proj.weight",)),
    "Qwen3": ("qwen3", WIDE, ("self_attn.", "mlp.down_proj.weight")),
    "Gemma": ("gemma", {**WIDE, "vocab_size": 64}, ("_proj.weight", "embed_tokens", "norm.weight")),
    "Gemma with images": ("gemma_images", {}, ("layers.1.",)),
    "GPT-2": ("gpt2", {"n_embd": 96}, ("c_attn.weight", "c_proj.weight", "h.1.mlp.c_fc.weight", "ln_1.weight")),
    "BERT": ("bert", BERT, ("attention.self.query.weight", "dense.weight")),
    "T5": (
        "t5",
        {**T5, "vocab_size": 64},
        ("shared", "layer_norm", "Attention.q.", "Attention.v.", "Attention.o.", "DenseReluDense."),
    ),
    "Mixtral": ("mixtral", WIDE, ("self_attn.",)),
    "Qwen2-MoE": ("qwen2_moe", {**WIDE, "shared_expert_intermediate_size": 96}, ("self_attn.", "shared_expert.")),
}
"""Architecture → kind of model, changes of its config, and parts of the names of the tensors that the fine-tune changes."""


@dataclass(frozen=True)
class Place:
    """A base and the pack of a fine-tune of its linear layers."""

    base: Path
    pack: Pack


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    root = tmp_path_factory.mktemp("export")

    @functools.cache
    def place(name: str) -> Place:
        kind, changes, parts = CASES[name]
        folder = root / name.replace(" ", "-").replace(",", "")
        if kind == "gemma_images":
            changes = {"text_config": KINDS[kind][2]["text_config"] | WIDE}
        base = save_model(kind, folder / "base", dtype=torch.float32, **changes)
        tuned = tune_lowrank(base, folder / "tuned", parts)
        return Place(base, make_pack(tuned, base, folder / "pack"))

    return place


@pytest.fixture
def llama(places: Callable[[str], Place]) -> Place:
    return places("Llama")


def make_pack(tuned: Path, base: Path, folder: Path, name: str = "skill") -> Pack:
    metadata = AuthorFile(name=name, version="1.0.0")
    return packer.pack(tuned, base, folder, metadata=metadata, budget_bytes=1 << 24)


def tune_lowrank(base: Path, folder: Path, parts: tuple[str, ...], *, seed: int = 1, rank: int = 3) -> Path:
    """Write a fine-tune of the tensors whose names contain one of ``parts``: matrices moved by a low-rank difference."""
    generator = torch.Generator().manual_seed(seed)

    def moved(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not any(part in name for part in parts) or name.endswith(".bias"):
            return tensor
        if tensor.dim() == 1:
            return tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        left, right = (torch.randn(size, rank, generator=generator) for size in tensor.shape)
        return (tensor + 0.02 * left @ right.T).to(tensor.dtype)

    return rewrite(base, folder, lambda tensors: {name: moved(name, tensor) for name, tensor in tensors.items()})


def outputs(model: Any) -> torch.Tensor:
    """Return the logits, or the states of an encoder, for some tokens."""
    tokens = 8 + torch.arange(2 * 12).reshape(2, 12) % (VOCABULARY - 8)  # 5 to 7 stand for images
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=tokens, **more)[0]
    return result


def with_adapter(base: Path, adapter: Path) -> Any:
    """Return what peft makes of a base and an adapter, without merging; every array must have a place."""
    import peft

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fan_in_fan_out.*")
        warnings.filterwarnings("ignore", ".*tie_word_embeddings=True.*")  # both ends are changed alike
        warnings.simplefilter("ignore", FutureWarning)  # peft uses what transformers is to drop
        return peft.PeftModel.from_pretrained(load_model(base), adapter).eval()


@pytest.mark.parametrize("case", CASES)
def test_an_exported_adapter_computes_in_peft_what_the_grafted_pack_computes(
    case: str, places: Callable[[str], Place], tmp_path: Path
):
    place = places(case)
    written = export_adapters([place.pack], place.base, tmp_path / "out")
    (adapter,) = written.adapters
    matrices = [name for name, entry in open_delta(place.pack).tensors.items() if len(entry.shape) > 1]
    assert adapter.misfits == () and adapter.layers >= len(matrices) > 0
    assert adapter.measured is not None and adapter.measured.error < 1e-12 and adapter.measured.left_out == 0
    plain, grafted = outputs(load_model(place.base)), outputs(graft(load_model(place.base), [place.pack]))
    assert (grafted - plain).abs().max() > 1e-2
    exported = outputs(with_adapter(place.base, tmp_path / "out" / "skill"))
    torch.testing.assert_close(exported, grafted, rtol=1e-5, atol=2e-5)
    # and skillhub itself reads it as the same
    torch.testing.assert_close(
        outputs(graft(load_model(place.base), [tmp_path / "out" / "skill"])), grafted, rtol=1e-5, atol=2e-5
    )


def test_a_scale_is_one_for_readers_of_patterns_and_for_those_that_know_only_rank_and_alpha(
    llama: Place, tmp_path: Path
):
    export_adapters([llama.pack], llama.base, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "skill" / "adapter_config.json").read_text())
    changes = {n: one for n, one in read_changes(open_adapter(tmp_path / "out" / "skill")).items() if one.has_product}
    ranks = {change.module: change.factors[1].shape[0] for change in changes.values()}
    assert config["r"] == config["lora_alpha"] == max(ranks.values())
    assert len(set(ranks.values())) > 1
    assert all(change.scale == 1 for change in changes.values())
    delta = open_delta(llama.pack)
    for name, change in changes.items():
        decoded = delta.decode(name.removeprefix("model."))
        torch.testing.assert_close(
            change.product(transposed=False), decoded, rtol=0, atol=1e-6 * float(decoded.abs().max())
        )


@pytest.mark.parametrize("shape", [(90, 130), (1100, 1060)])
@pytest.mark.parametrize("price", [1e-4, 1e-7, 1e-9])
def test_components_and_exact_rows_become_factors_of_what_is_decoded(shape: tuple[int, int], price: float):
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(shape[0], 4, generator=generator) @ torch.randn(4, shape[1], generator=generator) * 0.01
    matrix[5] = torch.randn(shape[1], generator=generator)
    encoded = encode(analyse("m", matrix), price, matrix)
    assert lowrank.ID in [part.codec for part in encoded.parts]
    found, decoded = product_of(encoded), decode(encoded)
    assert found is not None and found.rank == product_rank(encoded)
    torch.testing.assert_close(found.multiply(), decoded, rtol=0, atol=float(decoded.abs().max()) * 2e-6)
    narrow = found.left.to(torch.float16).float() @ found.right.to(torch.float16).float()
    assert (narrow - decoded).norm() < 2e-3 * decoded.norm()  # neither factor leaves the range of half precision


def test_exact_rows_replace_what_components_say_of_them():
    matrix = torch.arange(80.0 * 70).reshape(80, 70) / 1000
    encoded = encode(analyse("m", matrix), 1e-6, matrix)
    replaced = EncodedTensor(encoded.shape, (*encoded.parts, rows.encode(-matrix, [2, 79])))
    found = product_of(replaced)
    assert found is not None
    torch.testing.assert_close(found.multiply(), decode(replaced), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.multiply()[[2, 79]], -matrix[[2, 79]], rtol=0, atol=0)


def test_what_is_no_product_is_none_and_nothing_is_of_rank_zero():
    assert product_of(exact.encode(torch.ones(3, 4))) is None
    assert product_of(exact.encode(torch.ones(3, 4), operation="set")) is None
    assert product_rank(zero.encode((3,))) is None
    nothing = product_of(zero.encode((3, 4)))
    assert nothing is not None and nothing.rank == 0 and torch.equal(nothing.multiply(), torch.zeros(3, 4))


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_nearest_product_is_that_of_the_singular_values(rank: int):
    matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(3))
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    torch.testing.assert_close(nearest_product("m", matrix, rank).multiply().double(), best, rtol=1e-4, atol=1e-4)
    assert nearest_product("m", torch.zeros(4, 5), 2).multiply().shape == (4, 5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """Kind → a base and the pack of a fine-tune of all of it, where some matrices are stored densely."""
    root = tmp_path_factory.mktemp("whole")

    @functools.cache
    def place(kind: str) -> Place:
        changes = {"n_embd": 64} if kind == "gpt2" else {"hidden_size": 64, "intermediate_size": 96}
        base = save_model(kind, root / kind / "base", dtype=torch.float32, **changes)
        return Place(base, make_pack(tune(base, root / kind / "tuned", size=0.02), base, root / kind / "pack", "all"))

    return place


REASONS = {
    "llama": {"stored densely"},
    "gpt2": {"bias", "stored densely"},
    "mixtral": {"stored densely", "tensor of fused experts", "not of a linear layer"},
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_does_not_fit_is_refused_and_with_partial_listed_one_by_one(
    kind: str, whole: Callable[[str], Place], tmp_path: Path
):
    place = whole(kind)
    with pytest.raises(UsageError, match=r"all 1\.0\.0 .* fit") as refused:
        export_adapters([place.pack], place.base, tmp_path / "out")
    assert not (tmp_path / "out").exists() and "--rank 64" in refused.value.hint
    delta = open_delta(place.pack)
    if kind == "mixtral":  # its attention is too small here to be stored as components
        written = export_adapters([place.pack], place.base, tmp_path / "out", partial=True, rank=8)
    else:
        assert "--partial" in refused.value.hint
        written = export_adapters([place.pack], place.base, tmp_path / "out", partial=True)
    (adapter,) = written.adapters
    said = {misfit.tensor for misfit in adapter.misfits} | names_in(tmp_path / "out" / "all", place.base)
    assert said == set(delta.names)
    assert {misfit["reason"] for misfit in refused.value.details["misfits"]} == REASONS[kind]
    text = (tmp_path / "out" / "README.md").read_text()
    assert all(f"`{misfit.tensor}`" in text for misfit in adapter.misfits)
    energies = {name: float(delta.decode(name).square().sum()) for name in delta.names}
    left_out = sum(energies[misfit.tensor] for misfit in adapter.misfits) / sum(energies.values())
    assert adapter.measured is not None and adapter.measured.left_out == pytest.approx(left_out, rel=1e-4)


def names_in(adapter: Path, base: Path) -> set[str]:
    """Return the canonical names of what an adapter changes, as skillhub reads it."""
    modules = modules_of(empty_model(base))
    target = Target(modules, open_checkpoint(base).tensor)
    delta = open_adapter_delta(open_adapter(adapter), target)
    return {name for name in delta.names if delta.decode(name).any()}


VLLM_MISFITS = {
    "Llama": {"embedding", "output head", "norm"},
    "GPT-2": {"norm"},
    "T5": {"embedding", "norm"},
}


@pytest.mark.parametrize("case", VLLM_MISFITS)
def test_vllm_gets_linear_layers_within_the_model_and_nothing_else(
    case: str, places: Callable[[str], Place], tmp_path: Path
):
    place = places(case)
    with pytest.raises(UsageError, match="do not fit"):
        export_adapters([place.pack], place.base, tmp_path / "out", format="vllm")
    (adapter,) = export_adapters([place.pack], place.base, tmp_path / "out", format="vllm", partial=True).adapters
    assert {misfit.reason.value for misfit in adapter.misfits} == VLLM_MISFITS[case]
    keys = load_file(tmp_path / "out" / "skill" / "adapter_model.safetensors")
    pattern = r"base_model\.model\.[\w.]+\.\d+\.[\w.]+\.lora_[AB]\.weight"
    assert len(keys) == 2 * adapter.layers and all(re.fullmatch(pattern, key) for key in keys)
    assert adapter.layers + len(adapter.misfits) == len(open_delta(place.pack).names)
    config = json.loads((tmp_path / "out" / "skill" / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None


def test_a_copied_head_takes_the_difference_of_its_embedding(tmp_path: Path):
    model = make_model("llama", dtype=torch.float32, **WIDE, vocab_size=64)
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "base")
    base = tmp_path / "base"

    def moved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        noise = 0.05 * torch.randn(64, 2, generator=torch.Generator().manual_seed(1)) @ torch.ones(2, 96)
        return {name: tensor + noise if tensor.shape == (64, 96) else tensor for name, tensor in tensors.items()}

    pack = make_pack(rewrite(base, tmp_path / "tuned", moved), base, tmp_path / "pack")
    assert open_delta(pack).names == ["embed_tokens.weight"]
    (adapter,) = export_adapters([pack], base, tmp_path / "out").adapters
    assert adapter.layers == 2 and "merge_and_unload" in (tmp_path / "out" / "README.md").read_text()
    grafted = outputs(graft(load_model(base), [pack]))
    torch.testing.assert_close(outputs(with_adapter(base, tmp_path / "out" / "skill")), grafted, rtol=1e-5, atol=2e-5)


def test_a_rank_takes_in_what_is_dense_and_what_has_more_components_and_its_error_is_told(
    whole: Callable[[str], Place], tmp_path: Path
):
    place = whole("llama")
    (adapter,) = export_adapters([place.pack], place.base, tmp_path / "out", rank=6).adapters
    assert adapter.rank == 6 and adapter.misfits == ()
    delta, missed, total = open_delta(place.pack), 0.0, 0.0
    for name in delta.names:
        decoded = delta.decode(name).double()
        total += float(decoded.square().sum())
        if decoded.dim() > 1:
            missed += float(torch.linalg.svdvals(decoded)[6:].square().sum())
    assert adapter.measured is not None and adapter.measured.error == pytest.approx(missed / total, rel=1e-3)


def test_weights_are_multiplied_into_the_factors(llama: Place, tmp_path: Path):
    export_adapters([llama.pack], llama.base, tmp_path / "out", weights=[-0.5])
    exported = outputs(with_adapter(llama.base, tmp_path / "out" / "skill"))
    grafted = outputs(graft(load_model(llama.base), [llama.pack], weights=[-0.5]))
    torch.testing.assert_close(exported, grafted, rtol=1e-5, atol=2e-5)


PATTERNS = {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}}


def test_an_adapter_is_passed_on_and_for_vllm_its_scales_are_multiplied_in(llama: Place, tmp_path: Path):
    plain = make_adapter(llama.base, tmp_path / "plain", target_modules=["q_proj"], use_rslora=True)
    mixed = make_adapter(llama.base, tmp_path / "mixed", **PATTERNS)
    for format in ("peft", "vllm"):
        out = tmp_path / format
        written = export_adapters([llama.pack, plain, mixed], llama.base, out, format=format, partial=True)
        assert [adapter.name for adapter in written.adapters] == ["mixed", "plain", "skill"]
        assert written.adapters[0].measured is None
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (out / "plain" / file).read_bytes() == (plain / file).read_bytes()
            assert ((out / "mixed" / file).read_bytes() == (mixed / file).read_bytes()) is (format == "peft")
    config = json.loads((tmp_path / "vllm" / "mixed" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4
    expected = outputs(merged_model(llama.base, mixed))
    torch.testing.assert_close(
        outputs(with_adapter(llama.base, tmp_path / "vllm" / "mixed")), expected, rtol=1e-5, atol=1e-5
    )


def test_a_rank_that_only_patterns_tell_is_not_left_to_a_reader_without_them(llama: Place, tmp_path: Path):
    adapter = make_adapter(
        llama.base, tmp_path / "lora", target_modules=["q_proj"], rank_pattern={"q_proj": 2}
    )  # scaled by 6 / 2 in peft, where r alone would say 6 / 4
    export_adapters([adapter], llama.base, tmp_path / "out", format="vllm")
    config = json.loads((tmp_path / "out" / "lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 2
    expected = outputs(merged_model(llama.base, adapter))
    torch.testing.assert_close(
        outputs(with_adapter(llama.base, tmp_path / "out" / "lora")), expected, rtol=1e-5, atol=1e-5
    )


def test_what_vllm_cannot_serve_of_an_adapter_is_refused_or_left_out(llama: Place, tmp_path: Path):
    adapter = make_adapter(llama.base, tmp_path / "lora", target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert export_adapters([adapter], llama.base, tmp_path / "peft").adapters[0].misfits == ()
    with pytest.raises(UsageError, match="1 trained as a whole"):
        export_adapters([adapter], llama.base, tmp_path / "vllm", format="vllm")
    (written,) = export_adapters([adapter], llama.base, tmp_path / "vllm", format="vllm", partial=True).adapters
    assert [misfit.tensor for misfit in written.misfits] == ["lm_head.weight"]
    arrays = load_file(tmp_path / "vllm" / "lora" / "adapter_model.safetensors")
    assert len(arrays) == 4 and all("q_proj.lora_" in name for name in arrays)
    embedding = make_adapter(llama.base, tmp_path / "embedding", target_modules=["embed_tokens"])
    assert export_adapters([embedding], llama.base, tmp_path / "other").adapters[0].layers == 0
    with pytest.raises(UsageError, match=r"Nothing that embedding changes fits .*: 1 embedding\."):
        export_adapters([embedding], llama.base, tmp_path / "served", format="vllm", partial=True)
    with pytest.raises(UsageError, match="passed on as it is"):
        export_adapters([adapter], llama.base, tmp_path / "weighted", weights=[0.5])


def test_the_script_calls_vllm_with_every_adapter_and_a_rank_that_it_knows(llama: Place, tmp_path: Path):
    packs = [llama.pack, make_adapter(llama.base, tmp_path / "an adapter's", target_modules=["q_proj"])]
    written = export_adapters(packs, llama.base, tmp_path / "out dir", format="vllm", partial=True)
    fake = tmp_path / "bin" / "vllm"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor one in "$@"; do printf "%s\\\\n" "$one"; done\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
    assert written.script is not None
    done = subprocess.run(
        [written.script, "--port", "8001"], capture_output=True, text=True, env=environment, check=True, cwd="/"
    )
    ranks = {adapter.name: adapter.rank for adapter in written.adapters}
    rank = min(allowed for allowed in RANKS if allowed >= max(ranks.values()))
    folder = (tmp_path / "out dir").resolve()
    assert set(ranks) == {"skill", "an-adapter-s"}
    assert done.stdout.splitlines() == [
        "serve", str(llama.base.resolve()), "--lora-modules",
        *(f"{name}={folder / name}" for name in sorted(ranks)),
        "--enable-lora", "--max-loras", "2", "--max-lora-rank", str(rank), "--port", "8001",
    ]  # fmt: skip
    again = subprocess.run(
        [written.script], capture_output=True, text=True, env={**environment, "MODEL": "acme/other"}, check=True
    )
    assert again.stdout.splitlines()[1] == "acme/other"


def test_a_model_name_cannot_command_the_shell(tmp_path: Path):
    script = tmp_path / "serve.sh"
    name = "a'; touch pwned; $(touch pwned) `touch pwned` \""
    script.write_text(launch_script(name, {"one": 1}).replace("exec vllm", "printf '%s\\n'"))
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[1] == name and not (tmp_path / "pwned").exists()


def test_packs_of_one_name_are_told_apart(llama: Place, tmp_path: Path):
    other = make_pack(
        tune_lowrank(llama.base, tmp_path / "tuned", ("q_proj.weight",), seed=5), llama.base, tmp_path / "other"
    )
    written = export_adapters([llama.pack, other], llama.base, tmp_path / "out")
    assert {adapter.name for adapter in written.adapters} == {
        f"skill-{pack.digest[:8]}" for pack in (llama.pack, other)
    }


def test_another_base_an_unknown_format_and_a_pack_of_nothing_linear_are_refused(llama: Place, tmp_path: Path):
    other = save_model("llama", tmp_path / "other", dtype=torch.float32, seed=9, **WIDE)
    with pytest.raises(WrongBaseError, match="does not fit this model"):
        export_adapters([llama.pack], other, tmp_path / "out")
    for options, word in (
        ({"format": "gguf"}, "format"),
        ({"rank": 0}, "rank"),
        ({"format": "vllm", "rank": 513}, "rank"),
    ):
        with pytest.raises(UsageError, match=word):
            export_adapters([llama.pack], llama.base, tmp_path / "out", **options)
    tuned = rewrite(llama.base, tmp_path / "tuned", lambda t: {**t, "model.norm.weight": t["model.norm.weight"] + 1})
    norms = build_pack(tuned, llama.base, tmp_path / "norms", name="norms")
    for options in ({}, {"partial": True}):
        with pytest.raises(UsageError, match=r"Nothing that norms 1\.0\.0 changes fits .*: 1 norm\."):
            export_adapters([norms], llama.base, tmp_path / "out", format="vllm", **options)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_tells_and_refuses(whole: Callable[[str], Place], tmp_path: Path):
    place, shell = whole("llama"), Shell(tmp_path)
    arguments = ("export", "--base", place.base, "--pack", f"{place.pack.folder}@0.5", "-o")
    refused = shell.fail(2, *arguments, "out")
    assert "do not fit a LoRA adapter" in refused and "--partial" in refused
    written = shell.json(*arguments, "out", "--partial", "--format", "vllm", "--rank", "4")
    (adapter,) = written["adapters"]
    assert (adapter["name"], adapter["rank"], adapter["digest"]) == ("all", 4, open_pack(place.pack.folder).digest)
    assert {misfit["reason"] for misfit in adapter["misfits"]} == {"embedding", "output head", "norm"}
    assert written["script"] == "out/serve.sh"
    text = shell.succeed(*arguments, "more", "--partial")
    assert "all leaves out" in text and "stored densely" in text and "Wrote more." in text


def test_peft_switches_between_exported_adapters_and_mixes_those_without_norms_in_a_batch(llama: Place, tmp_path: Path):
    def other(name: str, seed: int) -> Pack:
        tuned = tune_lowrank(llama.base, tmp_path / name, ("_proj.weight", "embed_tokens"), seed=seed)
        return make_pack(tuned, llama.base, tmp_path / f"{name}-pack", name=name)

    packs = [llama.pack, other("two", 5), other("three", 6)]
    export_adapters(packs, llama.base, tmp_path / "out")
    assert "only switch" in (tmp_path / "out" / "README.md").read_text()
    tokens = 8 + torch.arange(3 * 10).reshape(3, 10) % (VOCABULARY - 8)
    one, two, three = (graft(load_model(llama.base), [pack]) for pack in packs)
    with torch.inference_mode():
        expected = [model(input_ids=tokens).logits for model in (one, two, three)]
        switched = with_adapter(llama.base, tmp_path / "out" / "skill")
        switched.load_adapter(tmp_path / "out" / "two", adapter_name="two")
        for name, logits in (("two", expected[1]), ("default", expected[0])):
            switched.set_adapter(name)
            torch.testing.assert_close(switched(input_ids=tokens).logits, logits, rtol=1e-5, atol=3e-5)
        mixed = with_adapter(llama.base, tmp_path / "out" / "three")
        mixed.load_adapter(tmp_path / "out" / "two", adapter_name="two")
        logits = mixed(input_ids=tokens, adapter_names=["two", "__base__", "default"]).logits
        plain = load_model(llama.base)(input_ids=tokens).logits
        rows = torch.stack([expected[1][0], plain[1], expected[2][2]])
        torch.testing.assert_close(logits, rows, rtol=1e-5, atol=3e-5)
