from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from skillhub.adapters import open_adapter
from skillhub.compose.fusion import fuse
from skillhub.compose.grafts import graft, grafted_packs, ungraft
from skillhub.errors import IntegrityError, NotFoundError, SkillhubError, UsageError, WrongBaseError
from tests.support.peft_adapters import make_adapter, merged_model, with_arrays, with_config
from tests.support.tiny_models import VOCABULARY, bits, build_pack, load_model, make_model, save_model, tune

ATTENTION = ["q_proj", "v_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"target_modules": "all-linear"}),
    "llama, tied": ("tied", {"target_modules": ATTENTION}),
    "llama, rank and alpha patterns": (
        "llama",
        {
            "target_modules": [*ATTENTION, "down_proj"],
            "rank_pattern": {"v_proj": 3, "layers.1.mlp.down_proj": 2},
            "alpha_pattern": {"v_proj": 5, r"^model\.layers\.\d+\.mlp.*": 11, "layers.0.self_attn.q_proj": 2},
        },
    ),
    "llama, rank-stabilized": ("llama", {"target_modules": ATTENTION, "use_rslora": True}),
    "llama, head trained as a whole": ("llama", {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]}),
    "llama, embeddings and head": ("llama", {"target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2, square layers only": ("gpt2", {"target_modules": r".*attn\.c_proj"}),
    "gpt2, all biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "gpt2, positions": ("gpt2", {"target_modules": ["wpe", "c_attn"]}),
    "bert": ("bert", {"target_modules": ["query", "value", "dense"]}),
    "bert, biases of its own": ("bert", {"target_modules": ["query", "value"], "lora_bias": True}),
    "bert, biases of its layers": ("bert", {"target_modules": ["query", "value"], "bias": "lora_only"}),
    "bert, embeddings": ("bert", {"target_modules": ["word_embeddings", "query"]}),
    "bert, pooler trained as a whole": ("bert", {"target_modules": ["query"], "modules_to_save": ["pooler"]}),
    "mixtral": ("mixtral", {"target_modules": ATTENTION}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → folder of an fp32 base model."""
    root = tmp_path_factory.mktemp("bases")
    return functools.cache(lambda kind: save_model(kind, root / kind, dtype=torch.float32))


def outputs(model: Any) -> torch.Tensor:
    """Return logits, or the states and the pooled ones of an encoder, for some tokens."""
    tokens = torch.arange(2 * 12).reshape(2, 12) % VOCABULARY
    with torch.inference_mode():
        result = model(input_ids=tokens)
    pooled = result.get("pooler_output")
    return torch.cat([result[0].flatten(), *([] if pooled is None else [pooled.flatten()])])


@pytest.mark.parametrize("case", KINDS)
def test_a_grafted_adapter_computes_what_peft_merges(case: str, bases: Callable[[str], Path], tmp_path: Path):
    kind, settings = KINDS[case]
    base = bases(kind)
    adapter = make_adapter(base, tmp_path / "lora", **settings)
    model = load_model(base)
    before, plain = bits(model), outputs(model)
    assert graft(model, [adapter]) is model
    expected = outputs(merged_model(base, adapter))
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)
    ungraft(model)
    assert bits(model) == before


@pytest.mark.parametrize("case", KINDS)
def test_a_fused_checkpoint_is_what_grafting_gives(case: str, bases: Callable[[str], Path], tmp_path: Path):
    kind, settings = KINDS[case]
    adapter = make_adapter(bases(kind), tmp_path / "lora", **settings)
    fused = load_model(fuse(bases(kind), [adapter], tmp_path / "fused"))
    grafted = graft(load_model(bases(kind)), [adapter])
    assert torch.equal(outputs(fused), outputs(grafted))


def test_an_adapter_and_a_pack_are_composed_in_any_order_and_taken_out_singly(
    bases: Callable[[str], Path], tmp_path: Path
):
    base = bases("llama")
    pack = build_pack(tune(base, tmp_path / "tuned", size=0.02), base, tmp_path / "pack")
    adapter = open_adapter(make_adapter(base, tmp_path / "lora", target_modules="all-linear"))
    together, apart, alone = (load_model(base) for _ in range(3))
    before = bits(together)
    graft(together, [pack, adapter], weights=[1.0, 0.5])
    graft(graft(apart, [adapter], weights=[0.5]), [pack])
    assert bits(together) == bits(apart)
    assert {str(item.pack.name) for item in grafted_packs(together)} == {"tiny-pack", "lora"}
    fused = load_model(fuse(base, [adapter, pack], tmp_path / "fused", weights=[0.5, 1.0]))
    assert bits(fused) == bits(together)
    ungraft(together, tmp_path / "lora")
    assert bits(together) == bits(graft(alone, [pack]))
    ungraft(apart, "tiny-pack")
    ungraft(alone)
    assert bits(apart) == bits(graft(alone, [adapter], weights=[0.5]))
    assert bits(ungraft(together)) == bits(ungraft(apart, adapter)) == before


def test_a_pack_beside_an_adapter_still_decides_what_the_base_is(bases: Callable[[str], Path], tmp_path: Path):
    base = bases("llama")
    pack = build_pack(tune(base, tmp_path / "tuned"), base, tmp_path / "pack")
    adapter = make_adapter(base, tmp_path / "lora", target_modules=ATTENTION)
    other = make_model("llama", dtype=torch.float32, seed=9)
    graft(other, [adapter])
    before = bits(other)
    with pytest.raises(WrongBaseError, match=r"tiny-pack 1\.0\.0 does not fit this model"):
        graft(other, [pack])
    assert bits(other) == before


def test_weights_scale_what_was_trained_as_a_whole_too(bases: Callable[[str], Path], tmp_path: Path):
    base = bases("llama")
    adapter = make_adapter(base, tmp_path / "lora", target_modules=ATTENTION, modules_to_save=["lm_head"])
    start, whole = load_model(base).state_dict(), graft(load_model(base), [adapter]).state_dict()
    half = graft(load_model(base), [adapter], weights=[0.5]).state_dict()
    changed = {name for name, tensor in whole.items() if not torch.equal(tensor, start[name])}
    assert {"lm_head.weight", "model.layers.0.self_attn.q_proj.weight"} <= changed
    for name, tensor in half.items():
        torch.testing.assert_close(tensor, (start[name] + whole[name]) / 2)


def test_what_was_trained_as_a_whole_is_there_bit_for_bit_and_factors_are_rounded_without_bias(tmp_path: Path):
    base = save_model("llama", tmp_path / "base")
    adapter = make_adapter(
        base, tmp_path / "lora", target_modules="all-linear", modules_to_save=["embed_tokens"], lora_alpha=0.05
    )
    grafted, merged = graft(load_model(base), [adapter]), merged_model(base, adapter, model=load_model(base).float())
    expected = merged.state_dict()
    errors = []
    for name, tensor in grafted.state_dict().items():
        if "embed_tokens" in name:
            assert torch.equal(tensor.float(), expected[name])
        step = expected[name].abs().clamp(min=1e-30) * 2**-7
        assert ((tensor.float() - expected[name]).abs() <= step).all(), name
        errors.append(((tensor.float() - expected[name]) / step).flatten())
    assert abs(torch.cat(errors).mean()) < 0.01


def test_a_headless_adapter_fits_the_class_with_a_head(bases: Callable[[str], Path], tmp_path: Path):
    import transformers

    for kind, headless, targets in (
        ("llama", transformers.LlamaModel, ATTENTION),
        ("gpt2", transformers.GPT2Model, ["c_proj"]),
    ):
        body = headless.from_pretrained(bases(kind))
        adapter = make_adapter(bases(kind), tmp_path / f"{kind}-body", model=body, target_modules=targets)
        twin = make_adapter(bases(kind), tmp_path / f"{kind}-whole", target_modules=targets)
        model = graft(load_model(bases(kind)), [adapter])
        assert bits(model) == bits(graft(load_model(bases(kind)), [twin]))


def test_an_adapter_with_names_of_an_older_class_finds_the_experts(bases: Callable[[str], Path], tmp_path: Path):
    base = bases("mixtral")
    adapter = make_adapter(base, tmp_path / "lora", target_modules=ATTENTION)
    module = "model.layers.1.block_sparse_moe.experts.2.w2"
    factors = {
        f"base_model.model.{module}.lora_A.weight": torch.randn(4, 24),
        f"base_model.model.{module}.lora_B.weight": torch.randn(16, 4),
    }
    with_arrays(adapter, lambda arrays: arrays | factors)
    model = load_model(base)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    graft(model, [adapter])
    name = "model.layers.1.mlp.experts.down_proj"
    left, right = factors.popitem()[1], factors.popitem()[1]
    expected = before[name].clone()
    expected[2] += 6 / 4 * left @ right
    torch.testing.assert_close(model.get_parameter(name).detach(), expected)
    fused = load_model(fuse(base, [adapter], tmp_path / "fused"))
    assert bits(fused) == bits(model)


def test_a_resized_vocabulary_is_fused_and_not_grafted(bases: Callable[[str], Path], tmp_path: Path):
    base = bases("llama")

    def resized() -> Any:
        model = load_model(base)
        torch.manual_seed(3)
        model.resize_token_embeddings(VOCABULARY + 3)
        return model

    settings = {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = make_adapter(base, tmp_path / "lora", model=resized(), **settings)
    model = load_model(base)
    before = bits(model)
    with pytest.raises(UsageError, match=r"resizes .* from 26 to 29 rows"):
        graft(model, [adapter])
    assert bits(model) == before
    fused = load_model(fuse(base, [adapter], tmp_path / "fused"))
    assert fused.config.vocab_size == VOCABULARY + 3
    torch.testing.assert_close(
        outputs(fused), outputs(merged_model(base, adapter, model=resized())), rtol=1e-5, atol=1e-5
    )


def test_what_is_shared_must_be_changed_alike(bases: Callable[[str], Path], tmp_path: Path):
    base = bases("tied")
    for target in ("embed_tokens", "lm_head"):
        adapter = make_adapter(base, tmp_path / target, target_modules=[target, "q_proj"])
        with pytest.raises(UsageError, match=r"does not change .* alike, which this model holds as one"):
            graft(load_model(base), [adapter])
        with pytest.raises(UsageError, match=r"does not change .* alike, which this model holds as one"):
            fuse(base, [adapter], tmp_path / "out")
    both = make_adapter(base, tmp_path / "both", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    with pytest.raises(UsageError, match="alike"):
        graft(load_model(base), [both])
    head, body = (f"base_model.model.{name}.weight" for name in ("lm_head", "model.embed_tokens"))
    with_arrays(both, lambda arrays: {**arrays, head: arrays[body].clone()})
    grafted = graft(load_model(base), [both])
    expected = merged_model(base, both)
    torch.testing.assert_close(outputs(grafted), outputs(expected), rtol=1e-5, atol=1e-5)


def test_a_copied_head_is_not_taken_for_a_tied_one(tmp_path: Path):
    model = make_model("llama", dtype=torch.float32)
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "base")
    adapter = make_adapter(tmp_path / "base", tmp_path / "lora", target_modules=["embed_tokens"])
    with pytest.raises(UsageError, match="alike"):
        graft(load_model(tmp_path / "base"), [adapter])
    with pytest.raises(UsageError, match="alike"):
        fuse(tmp_path / "base", [adapter], tmp_path / "out")


Arrays = dict[str, torch.Tensor]
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


def renamed(old: str, new: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {name.replace(old, new): tensor for name, tensor in arrays.items()}


def replaced(name: str, value: torch.Tensor) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, name: value}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (renamed("model.layers", "decoder.layers"), WrongBaseError, "None of the 4 tensors of lora is in this model"),
        (renamed("layers.0", "layers.7"), WrongBaseError, "model.layers.7.self_attn.q_proj.* does not have"),
        (replaced("base_model.model.score.weight", torch.ones(3, 16)), WrongBaseError, "lora changes score, which"),
        (replaced(f"{Q_PROJ}.bias", torch.ones(16)), WrongBaseError, "q_proj, which this model does not have"),
        (replaced(f"{Q_PROJ}.lora_B.weight", torch.ones(20, 4)), WrongBaseError, r"is \[16, 16\] .* has \[20, 16\]"),
        (replaced(f"{Q_PROJ}.lora_B.weight", torch.ones(16, 5)), WrongBaseError, "do not go together"),
        (replaced(f"{Q_PROJ}.lora_B.weight", torch.ones(16)), WrongBaseError, "do not go together"),
        (replaced(f"{Q_PROJ}.weight", torch.ones(3, 3)), WrongBaseError, r"is \[16, 16\] .* has \[3, 3\]"),
        (
            replaced(f"{Q_PROJ}.lora_magnitude_vector", torch.ones(16)),
            UsageError,
            "lora_magnitude_vector, which is not",
        ),
        (replaced(f"{Q_PROJ}.lora_A.weight", torch.full((4, 16), torch.nan)), IntegrityError, "infinite or no numbers"),
        (replaced(f"{Q_PROJ}.lora_A.weight", torch.ones(4, 16, dtype=torch.int8)), IntegrityError, "stored as I8"),
        (lambda arrays: {name: arrays[name] for name in arrays if "lora_B" not in name}, IntegrityError, "no pair"),
        (lambda arrays: {name: arrays[name] for name in arrays if "lora_A" not in name}, IntegrityError, "no pair"),
        (replaced(f"{Q_PROJ.replace('q_proj', 'o_proj')}.lora_B.bias", torch.ones(16)), IntegrityError, "no pair"),
        (lambda arrays: {}, WrongBaseError, "None of the 0 tensors"),
    ],
)
def test_what_leads_nowhere_or_does_not_fit_is_an_error_and_the_model_stays_as_it_was(
    change: Callable[[Arrays], Arrays],
    error: type[SkillhubError],
    message: str,
    bases: Callable[[str], Path],
    tmp_path: Path,
):
    base = bases("llama")
    adapter = with_arrays(make_adapter(base, tmp_path / "lora", target_modules=ATTENTION), change)
    model = load_model(base)
    before = bits(model)
    with pytest.raises(error, match=message) as caught:
        graft(model, [adapter])
    assert caught.value.hint
    assert bits(model) == before
    assert grafted_packs(model) == ()
    with pytest.raises(error, match=message):
        fuse(base, [adapter], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_an_unknown_class_cannot_tell_its_modules(bases: Callable[[str], Path], tmp_path: Path):
    base = bases("llama")
    adapter = make_adapter(base, tmp_path / "lora", target_modules=ATTENTION)
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    for config in (None, '{"model_type": "llama"}', '{"model_type": "nobody"}'):
        if config:
            (unknown / "config.json").write_text(config)
        with pytest.raises(UsageError, match="does not say which class"):
            fuse(unknown, [adapter], tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({"architectures": [name]}, "does not say which class")
            for name in ("TrainingArguments", "AutoModelForCausalLM", "pipeline", "utils", 5)
        ),
        ({"model_type": ["llama"]}, "does not say which class"),
        ({"num_hidden_layers": 10**9}, "does not say which class"),
        ({"hidden_act": "none such"}, "No LlamaForCausalLM can be made of"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}, "does not say which class"),
    ],
)
def test_a_config_that_means_harm_is_refused_and_its_code_never_run(
    changes: dict[str, Any], message: str, bases: Callable[[str], Path], tmp_path: Path
):
    base = tmp_path / "base"
    shutil.copytree(bases("llama"), base)
    adapter = make_adapter(base, tmp_path / "lora", target_modules=ATTENTION)
    (base / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UsageError, match=message):
        fuse(base, [adapter], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "lora"]


def test_that_the_base_is_only_declared_is_told(bases: Callable[[str], Path], tmp_path: Path):
    base = bases("llama")
    pack = build_pack(tune(base, tmp_path / "tuned"), base, tmp_path / "pack")  # of acme/tiny
    adapter = make_adapter(base, tmp_path / "lora", target_modules=ATTENTION)
    told: list[str] = []
    model = graft(load_model(base), [adapter], notice=told.append)
    assert len(told) == 1
    assert "declares acme/tiny as its base. Names and shapes fit" in told[0]
    graft(model, [pack], notice=told.append)
    assert len(told) == 1
    with_config(adapter, base_model_name_or_path="acme/other", revision="v2")
    fuse(base, [pack, adapter], tmp_path / "fused", notice=told.append)
    assert "declares acme/other at v2 as its base, but tiny-pack 1.0.0 is of acme/tiny." in told[1]
    with_config(adapter, base_model_name_or_path=str(base))
    graft(load_model(base), [adapter], notice=told.append)
    assert "lora is an adapter and does not say what its base is." in told[2]


def test_an_installed_name_or_an_opened_adapter_or_nothing(bases: Callable[[str], Path], tmp_path: Path):
    adapter = make_adapter(bases("llama"), tmp_path / "lora", target_modules=ATTENTION)
    model = load_model(bases("llama"))
    with pytest.raises(NotFoundError, match="acme/lora is not installed"):
        graft(model, ["peft:acme/lora"], environment=tmp_path / "environment")
    with pytest.raises(UsageError, match="there twice"):
        graft(model, [adapter, open_adapter(adapter)])
    with pytest.raises(UsageError, match="packs must be a list"):
        graft(model, open_adapter(adapter))  # type: ignore[arg-type]
    graft(model, [adapter])
    with pytest.raises(NotFoundError, match="peft:acme/other is not grafted"):
        ungraft(model, "peft:acme/other")
    ungraft(model, "peft:lora")
    assert grafted_packs(model) == ()
