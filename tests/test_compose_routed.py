"""Routed grafting: every row of a batch is computed with its pack, whichever way, and the model comes back as it was."""

from __future__ import annotations

import copy
import functools
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parametrize

from skillhub.compose.grafts import graft, grafted, ungraft
from skillhub.compose.routed import graft_routed, routed_packs, ungraft_routed
from skillhub.compose.routed.batches import BASE, Batch, Identity
from skillhub.errors import IntegrityError, NotFoundError, UsageError
from skillhub.routing.decisions import Decision
from tests.support.lowrank_packs import build_lowrank_pack
from tests.support.tiny_models import bits, build_pack, load_model, make_model, save_model, tune

KINDS = ("llama", "tied", "gpt2", "bert", "t5", "mixtral", "qwen2", "qwen2_moe", "gemma")
DENSE = "norm|ln_|bias|embed|wte|shared|LayerNorm"
NAMES = ("low", "mixed", "dense")
"""Packs: of factors alone, of factors and dense tensors, and of a difference in every tensor."""


def build_places(folder: Path, kind: str, dtype: torch.dtype) -> Path:
    base = save_model(kind, folder / "base", dtype=dtype)
    build_lowrank_pack(base, folder / "low", seed=1)
    build_lowrank_pack(base, folder / "mixed", seed=2, rank=3, dense=DENSE)
    build_pack(tune(base, folder / "tuned", seed=3, size=0.05), base, folder / "dense", name="dense")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Kind (and dtype) → folder with ``base`` and the packs ``low``, ``mixed`` and ``dense``."""
    root = tmp_path_factory.mktemp("routed")

    @functools.cache
    def place(kind: str, dtype: torch.dtype = torch.float32) -> Path:
        return build_places(root / f"{kind}-{dtype}", kind, dtype)

    return place


@pytest.fixture
def llama(places: Callable[..., Path]) -> Path:
    return places("llama")


def packs_in(folder: Path) -> list[Path]:
    return [folder / name for name in NAMES]


def routed(folder: Path, router: Any = None, **options: Any) -> Any:
    """Return the model of a place with its packs routed."""
    notice = options.pop("notice", lambda _: None)
    model = load_model(folder / "base")
    return graft_routed(model, packs_in(folder), router=router or [], trust_base=True, notice=notice, **options)


def fused(folder: Path, name: str | None, weight: float = 1.0) -> Any:
    """Return the model of a place with one pack fused, or none."""
    model = load_model(folder / "base")
    return graft(model, [folder / name], weights=[weight], trust_base=True) if name else model


def logits(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    if getattr(model.config, "is_encoder_decoder", False):
        options["decoder_input_ids"] = ids
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=ids, attention_mask=mask, **options)[0]
    return output


def some_ids(rows: int, length: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 24, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("executor", ["grouped", "factored"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_gets_what_its_pack_alone_gives(places: Callable[..., Path], kind: str, executor: str):
    folder, ids = places(kind), some_ids(5)
    choices = ["low", None, "dense", "mixed", "low"]
    model = routed(folder, executor=executor)
    before, found = bits(model), logits(model, ids, pack_choices=choices)
    base = logits(load_model(folder / "base"), ids)
    for row, name in enumerate(choices):
        expected = logits(fused(folder, name), ids)[row]
        assert (found[row] - expected).abs().max() < 1e-4
        assert name is None or (base[row] - expected).abs().max() > 1e-3
    assert bits(model) == before == bits(load_model(folder / "base"))


@pytest.mark.parametrize("memory", ["weights", "factors", "codes", 20_000])
@pytest.mark.parametrize("kind", ["tied", "mixtral"])
def test_a_batch_that_agrees_is_the_fused_model(places: Callable[..., Path], kind: str, memory: str | int):
    folder, ids = places(kind), some_ids(3)
    model = routed(folder, executor="factored", memory=memory)
    assert torch.equal(logits(model, ids, pack_choices=[None] * 3), logits(load_model(folder / "base"), ids))
    for name in NAMES:
        found, expected = logits(model, ids, pack_choices=[name] * 3), logits(fused(folder, name), ids)
        assert (found - expected).abs().max() < 1e-5
        if memory == "weights":
            assert torch.equal(found, expected)


@pytest.mark.parametrize("executor", ["grouped", "factored"])
@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2", "t5"])
def test_in_bf16_the_error_is_no_larger_than_that_of_the_fused_model(
    places: Callable[..., Path], kind: str, executor: str
):
    folder, ids = places(kind, torch.bfloat16), some_ids(6, 8)
    choices = ["low", "mixed", "low", None, "mixed", "low"]
    found = logits(routed(folder, executor=executor), ids, pack_choices=choices).float()
    wide = {name: load_model(folder / "base").float() for name in ("low", "mixed")}
    mine, theirs = [], []
    for name, model in wide.items():
        reference = logits(graft(model, [folder / name], trust_base=True), ids)
        single = logits(fused(folder, name), ids).float()
        for row in (row for row, choice in enumerate(choices) if choice == name):
            mine.append((found[row] - reference[row]).pow(2).mean())
            theirs.append((single[row] - reference[row]).pow(2).mean())
    # of tiny models single logits differ by chance; what must not differ is the size of the error
    assert float(sum(mine)) ** 0.5 < 1.15 * float(sum(theirs)) ** 0.5


@settings(max_examples=25, deadline=None)
@given(
    choices=st.lists(st.sampled_from([None, *NAMES]), min_size=1, max_size=6),
    padding=st.lists(st.integers(-4, 4), min_size=6, max_size=6),
    executor=st.sampled_from(["grouped", "factored"]),
    seed=st.integers(0, 99),
)
def test_any_batch_with_padding_on_any_side_is_its_rows_alone(
    places: Callable[..., Path], choices: list[str | None], padding: list[int], executor: str, seed: int
):
    folder = places("llama")
    models = cached_models(folder)
    ids = some_ids(len(choices), 7, seed)
    mask = torch.ones_like(ids)
    for row in range(len(choices)):  # negative: on the right
        there = slice(None, padding[row]) if padding[row] > 0 else slice(7 + padding[row], None)
        if padding[row]:
            ids[row, there], mask[row, there] = 2, 0
    positions = (mask.cumsum(-1) - 1).clamp_(min=0)
    found = logits(models[executor], ids, mask, pack_choices=choices, position_ids=positions)
    for row, name in enumerate(choices):
        real = mask[row].bool()
        alone = logits(models[name], ids[row : row + 1][:, real])[0]
        assert (found[row][real] - alone).abs().max() < 1e-4


@functools.cache
def cached_models(folder: Path) -> dict[Any, Any]:
    executors = {executor: routed(folder, executor=executor) for executor in ("grouped", "factored")}
    return {**executors, **{name: fused(folder, name) for name in (None, *NAMES)}}


@pytest.mark.parametrize("executor", ["grouped", "factored"])
@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2", "bert", "t5", "gemma"])
def test_a_mixture_is_the_fused_model_with_those_weights(places: Callable[..., Path], kind: str, executor: str):
    folder, ids = places(kind), some_ids(5)
    mixture = torch.tensor([[0.5, 0.5, 0], [0, 0, 0], [1, 0, 0], [0.2, 0.3, 0.5], [0, -0.5, 1.5]])
    model = routed(folder, executor=executor)
    found = logits(model, ids, pack_choices=Decision(NAMES, (None,) * 5, None, mixture))
    for row, weights in enumerate(mixture.tolist()):
        expected = load_model(folder / "base")
        if any(weights):
            graft(expected, packs_in(folder), weights=weights, trust_base=True)
        assert (found[row] - logits(expected, ids)[row]).abs().max() < 1e-4


def test_the_head_of_a_masked_model_which_has_a_name_for_its_bias_differs_from_row_to_row(places: Callable[..., Path]):
    folder, ids, choices = places("bert_mlm"), some_ids(4), ["dense", None, "mixed", "low"]
    found = logits(routed(folder), ids, pack_choices=choices)
    for row, name in enumerate(choices):
        assert (found[row] - logits(fused(folder, name), ids)[row]).abs().max() < 1e-4


def test_what_a_module_reads_of_its_parts_is_the_packs_where_rows_agree_and_refused_else(places: Callable[..., Path]):
    folder, ids = places("qwen3_5"), some_ids(4)
    model = routed(folder)
    for name in (*NAMES, None):
        assert torch.equal(logits(model, ids, pack_choices=[name] * 4), logits(fused(folder, name), ids))
    expected = fused(folder, "dense").generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False, pack_choices=["dense"] * 4), expected)
    for choices in (["dense", None, "dense", None], ["dense", "low", "dense", None]):
        with pytest.raises(UsageError, match=r"cannot have several packs in this model: .*A_log"):
            logits(model, ids, pack_choices=choices)
    factors = logits(model, ids, pack_choices=["low", None, None, "low"])  # changes linear modules alone
    assert (factors[0] - logits(fused(folder, "low"), ids)[0]).abs().max() < 1e-4


def test_a_state_space_model_generates_with_a_pack(tmp_path: Path):
    sizes = {"vocab_size": 26, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "eos_token_id": None}
    base = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()
    base.save_pretrained(tmp_path / "base")
    tuned = tune(tmp_path / "base", tmp_path / "tuned", seed=3, size=0.1)
    build_pack(tuned, tmp_path / "base", tmp_path / "dense", name="dense")
    model, ids = load_model(tmp_path / "base"), some_ids(2)
    graft_routed(model, [tmp_path / "dense"], router=["dense"], trust_base=True, notice=lambda _: None)
    found = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, load_model(tuned).generate(ids, max_new_tokens=4, do_sample=False))
    cache = base(ids, use_cache=True).cache_params
    with pytest.raises(UsageError, match="did not make"):
        model(ids[:, :1], cache_params=cache)
    model(ids[:, :1], cache_params=cache, pack_choices=["dense", "dense"])


def test_images_are_computed_with_the_packs_that_the_caller_chooses(tmp_path: Path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    tuned = tune(tmp_path / "base", tmp_path / "tuned", seed=3, size=0.1)
    build_pack(tuned, tmp_path / "base", tmp_path / "dense", name="dense")
    model, images = load_model(tmp_path / "base"), torch.randn(2, 3, 8, 8)
    graft_routed(model, [tmp_path / "dense"], router=[], trust_base=True, notice=lambda _: None)
    found = model(pixel_values=images, pack_choices=["dense", None]).logits
    for row, folder in enumerate((tuned, tmp_path / "base")):
        assert (found[row] - load_model(folder)(pixel_values=images).logits[row]).abs().max() < 1e-4


def test_a_position_that_is_looked_up_for_all_rows_at_once_is_not_split(tmp_path: Path):
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_mel_bins": 8, "max_source_positions": 10}
    tokens = {"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 3, "vocab_size": 26}
    config = transformers.WhisperConfig(**sizes, **heads, **tokens, max_target_positions=16)
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    tuned = tune(tmp_path / "base", tmp_path / "tuned", seed=3, size=0.1)
    build_pack(tuned, tmp_path / "base", tmp_path / "dense", name="dense")
    model, sounds, ids = load_model(tmp_path / "base"), torch.randn(2, 8, 20), some_ids(2)
    graft_routed(model, [tmp_path / "dense"], router=[], trust_base=True, notice=lambda _: None)
    found = model(input_features=sounds, decoder_input_ids=ids, pack_choices=["dense", "dense"]).logits
    assert torch.equal(found, load_model(tuned)(input_features=sounds, decoder_input_ids=ids).logits)
    with pytest.raises(UsageError, match="embed_positions"):
        model(input_features=sounds, decoder_input_ids=ids, pack_choices=["dense", None])


def test_a_module_that_was_parametrized_since_is_told_and_not_ignored(llama: Path):
    model, ids = routed(llama), some_ids(2)
    logits(model, ids, pack_choices=["dense", "dense"])
    parametrize.register_parametrization(model.model.layers[0].mlp.up_proj, "weight", torch.nn.Identity())
    with pytest.raises(UsageError, match="weight of a ParametrizedLinear was replaced"):
        logits(model, ids, pack_choices=["dense", "dense"])


def test_a_mixture_of_experts_is_refused(places: Callable[..., Path]):
    model = routed(places("mixtral"))
    halves = Decision(NAMES, (0, 0), None, torch.tensor([[0.5, 0.5, 0], [0.5, 0, 0.5]]))
    with pytest.raises(UsageError, match="not linear in its weights"):
        logits(model, some_ids(2), pack_choices=halves)
    logits(model, some_ids(2), pack_choices=[None, "low"])  # nothing is left of the failed call


def test_a_pack_may_be_routed_with_another_weight(llama: Path):
    ids = some_ids(2)
    model = graft_routed(load_model(llama / "base"), [llama / "low"], weights=[-0.5], router=["low", None])
    expected = logits(fused(llama, "low", -0.5), ids)
    assert (logits(model, ids)[0] - expected[0]).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
@pytest.mark.parametrize("executor", ["grouped", "factored"])
def test_adapters_of_peft_and_packs_serve_one_batch(tmp_path: Path, executor: str):
    import peft

    base, ids = save_model("llama", tmp_path / "base", dtype=torch.float32), some_ids(3)
    build_pack(tune(base, tmp_path / "tuned", size=0.05), base, tmp_path / "dense", name="dense")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
    )
    adapted = peft.get_peft_model(load_model(base), config)
    adapted.save_pretrained(tmp_path / "lora")
    expected = logits(adapted.eval(), ids)
    packs = [tmp_path / "lora", tmp_path / "dense"]
    model = graft_routed(
        load_model(base), packs, router=["lora", "dense", None], executor=executor, notice=lambda _: None
    )
    found = logits(model, ids)
    assert (found[0] - expected[0]).abs().max() < 1e-5
    assert (found[1] - logits(graft(load_model(base), packs[1:]), ids)[1]).abs().max() < 1e-5
    assert torch.equal(found[2], logits(load_model(base), ids)[2])


def test_packs_join_and_leave_one_after_another(llama: Path):
    ids, model = some_ids(3), load_model(llama / "base")
    before = bits(model)
    graft_routed(model, [llama / "low"], router=["low"] * 3, notice=lambda _: None)
    graft_routed(model, [llama / "dense", llama / "mixed"], router=["low", "dense", "mixed"], notice=lambda _: None)
    assert {item.pack.manifest.name for item in routed_packs(model)} == set(NAMES)
    found = logits(model, ids)
    for row, name in enumerate(("low", "dense", "mixed")):
        assert (found[row] - logits(fused(llama, name), ids)[row]).abs().max() < 1e-5
    ungraft_routed(model, "mixed")
    with pytest.raises(UsageError, match="'mixed' is not routed"):
        logits(model, ids)
    assert torch.equal(logits(model, ids, pack_choices=[None, "dense", "low"])[1], found[1])
    with pytest.raises(NotFoundError):
        ungraft_routed(model, "mixed")
    ungraft_routed(model)
    assert bits(model) == before and routed_packs(model) == ()
    with pytest.raises(UsageError, match="No pack is routed"):
        ungraft_routed(model)


def own_methods(model: Any) -> list[str]:
    """Return the modules that have a method of their own instead of their class's."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name in ("forward", "generate", "compute_bias", "_skillhub_routing")
        if name in module.__dict__
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_ungraft_leaves_nothing_behind(places: Callable[..., Path], kind: str):
    model = load_model(places(kind) / "base")
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    graft_routed(model, packs_in(places(kind)), router=[None], notice=lambda _: None)
    assert own_methods(model)
    ungraft_routed(model)
    assert own_methods(model) == []
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_a_graft_that_fails_changes_nothing(llama: Path, tmp_path: Path):
    model, ids = load_model(llama / "base"), some_ids(2)
    before = bits(model)
    damaged = build_lowrank_pack(llama / "base", tmp_path / "damaged", seed=5)
    file = next(path for path in damaged.folder.rglob("delta-*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    attempts: list[tuple[type[Exception], dict[str, Any]]] = [
        (IntegrityError, {"packs": [llama / "low", tmp_path / "damaged"]}),
        (UsageError, {"packs": [llama / "low"], "router": "nearest"}),
        (UsageError, {"packs": [llama / "low"], "router": 3}),
        (UsageError, {"packs": [llama / "low"], "executor": "fast"}),
        (UsageError, {"packs": [llama / "low"], "memory": "disk"}),
        (UsageError, {"packs": [llama / "low"], "memory": -1}),
    ]
    for error, options in attempts:
        with pytest.raises(error):
            graft_routed(model, options.pop("packs"), **{"router": [None], "notice": lambda _: None, **options})
        assert own_methods(model) == [] and bits(model) == before
    graft_routed(model, [llama / "low"], router=["low", None], notice=lambda _: None)
    found = logits(model, ids)
    with pytest.raises(IntegrityError):
        graft_routed(model, [tmp_path / "damaged"], router=[None], notice=lambda _: None)
    assert torch.equal(logits(model, ids), found)


def test_memory_is_told_before_it_is_taken_and_refused_where_there_is_none(
    llama: Path, monkeypatch: pytest.MonkeyPatch
):
    told: list[str] = []
    routed(llama, notice=told.append)
    assert len(told) == 1 and "kB of the packs' weights" in told[0] and "low" in told[0]
    ids, choices = some_ids(3), ["low", "dense", None]
    expected = logits(routed(llama, executor="factored"), ids, pack_choices=choices)
    parameters = sum(p.numel() * p.element_size() for p in load_model(llama / "base").parameters())
    monkeypatch.setattr("skillhub.compose.routed.grafting.available_bytes", lambda device: parameters)
    monkeypatch.setattr("skillhub.compose.routed.weights.available_bytes", lambda device: parameters)
    with pytest.raises(UsageError, match=r"has 1.* left"):
        routed(llama, memory="weights", executor="grouped")
    found = logits(routed(llama, memory="codes"), ids, pack_choices=choices)
    assert (found - expected).abs().max() < 1e-5


def test_a_deep_copy_is_a_routed_model_of_its_own(llama: Path):
    ids, choices = some_ids(3), ["low", "dense", None]
    model = routed(llama, choices, executor="factored")
    expected = logits(model, ids)
    twin = copy.deepcopy(model)
    ungraft_routed(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert torch.equal(logits(twin, ids), expected)
    assert {item.pack.manifest.name for item in routed_packs(twin)} == set(NAMES)
    ungraft_routed(twin)
    assert bits(twin) == bits(load_model(llama / "base")) and own_methods(twin) == []


def test_packs_follow_the_model_into_another_dtype(places: Callable[..., Path]):
    folder, ids = places("llama", torch.bfloat16), some_ids(3)
    choices = ["mixed", "dense", None]
    model = routed(folder, choices, executor="grouped")
    logits(model, ids)
    model.to(torch.float64)
    for row, name in enumerate(choices):
        expected = logits(fused(folder, name).to(torch.float64), ids)[row]
        assert (logits(model, ids)[row] - expected).abs().max() < 1e-9


def test_saving_a_routed_model_writes_the_base(llama: Path, tmp_path: Path):
    model = routed(llama, ["low"])
    logits(model, some_ids(1))
    model.save_pretrained(tmp_path / "saved")
    assert bits(load_model(tmp_path / "saved")) == bits(load_model(llama / "base"))
    assert model.state_dict().keys() == load_model(llama / "base").state_dict().keys()


def test_training_and_resizing_a_routed_model_is_refused(llama: Path):
    model = routed(llama, ["low"])
    model.train()
    with pytest.raises(UsageError, match="does not train"):
        model(input_ids=some_ids(1))
    model.eval()
    model.resize_token_embeddings(30)
    with pytest.raises(UsageError, match="resized"):
        model(input_ids=some_ids(1))


def test_routed_and_fused_packs_do_not_mix(llama: Path):
    model = fused(llama, "low")
    with pytest.raises(UsageError, match="fused"):
        graft_routed(model, [llama / "dense"], router=[None])
    ungraft(model)
    graft_routed(model, [llama / "dense"], router=[None], notice=lambda _: None)
    with pytest.raises(UsageError, match="routed on this model"):
        graft(model, [llama / "low"])


def test_graft_and_ungraft_do_it_too(llama: Path):
    model, ids = load_model(llama / "base"), some_ids(2)
    options: dict[str, Any] = {"mode": "routed", "router": ["low", None], "notice": lambda _: None}
    expected = logits(graft_routed(load_model(llama / "base"), [llama / "low"], router=["low", None]), ids)
    assert graft(model, [llama / "low"], **options) is model
    assert torch.equal(logits(model, ids), expected)
    with grafted(model, [llama / "dense"], **{**options, "router": ["dense", "low"]}):
        assert (logits(model, ids)[0] - expected[0]).abs().max() > 1e-3
    assert torch.equal(logits(model, ids), expected)
    assert ungraft(model, "low") is model and own_methods(model) == []
    with pytest.raises(UsageError, match="no use for densities"):
        graft(model, [llama / "low"], mode="routed", densities=[0.5])
    with pytest.raises(UsageError, match="no use for router"):
        graft(model, [llama / "low"], router=["low"])


def test_gradients_of_the_input_go_through_the_chosen_packs(llama: Path):
    model, ids = routed(llama, ["low", "dense"], executor="factored"), some_ids(2)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None
    for row, name in enumerate(("low", "dense")):
        single = embedded.detach().clone().requires_grad_()
        fused(llama, name)(inputs_embeds=single).logits.sum().backward()
        assert single.grad is not None
        assert (embedded.grad[row] - single.grad[row]).abs().max() < 1e-4


@pytest.mark.parametrize("memory", ["weights", "factors", 10_000_000])
def test_gradients_go_through_packs_that_ran_in_inference_mode_before(llama: Path, memory: str | int):
    with torch.inference_mode():
        model = routed(llama, executor="factored", memory=memory)
    model.to(torch.bfloat16)  # what is kept is converted once, in the first forward
    inputs = model.get_input_embeddings()(some_ids(3)).detach()
    for choices in (["low", "dense", None], ["low"] * 3, ["dense"] * 3):
        with torch.inference_mode():
            model(inputs_embeds=inputs, pack_choices=choices)
        leaf = inputs.clone().requires_grad_(True)
        model(inputs_embeds=leaf, pack_choices=choices).logits.float().sum().backward()
        assert leaf.grad is not None and bool(leaf.grad.any())


def test_pickling_a_routed_model_is_refused_with_the_remedy(llama: Path):
    model = routed(llama)
    with pytest.raises(UsageError, match="cannot be pickled"):
        pickle.dumps(model)
    ungraft(model)
    assert bits(pickle.loads(pickle.dumps(model))) == bits(load_model(llama / "base"))


class Interrupting(torch.nn.RMSNorm):
    """A norm at which grafting is interrupted."""

    stops = False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "forward" and Interrupting.stops:
            Interrupting.stops = False
            raise KeyboardInterrupt


def test_an_interruption_while_packs_take_their_places_changes_nothing(llama: Path):
    model, ids = load_model(llama / "base"), some_ids(2)
    norm = Interrupting(16, eps=model.config.rms_norm_eps)
    norm.weight = model.model.norm.weight
    model.model.norm = norm
    base = logits(model, ids)

    def interrupted() -> None:
        Interrupting.stops = True
        with pytest.raises(KeyboardInterrupt):
            graft_routed(model, [llama / "dense"], router=["dense"], trust_base=True, notice=lambda _: None)

    interrupted()
    assert not routed_packs(model) and torch.equal(logits(model, ids), base)
    assert not any("forward" in module.__dict__ for module in model.modules())
    graft_routed(model, [llama / "mixed"], router=["mixed"], trust_base=True, notice=lambda _: None)
    before = logits(model, ids)
    interrupted()
    assert [str(one.pack.name) for one in routed_packs(model)] == ["mixed"]
    assert torch.equal(logits(model, ids), before)


def test_a_file_that_is_gone_when_weights_are_decoded_is_told(llama: Path, tmp_path: Path):
    shutil.copytree(llama / "dense", tmp_path / "dense")
    model, ids = load_model(llama / "base"), some_ids(1)
    packs = [tmp_path / "dense"]
    graft_routed(model, packs, router=["dense"], trust_base=True, notice=lambda _: None, memory="codes")
    shutil.rmtree(tmp_path / "dense")
    with pytest.raises(IntegrityError, match="is missing"):
        model(input_ids=ids)
    ungraft(model)
    assert bits(model) == bits(load_model(llama / "base"))


def test_a_compiled_model_computes_the_same_and_can_be_ungrafted(llama: Path):
    ids, choices = some_ids(3), ["low", "dense", None]
    model = routed(llama, choices, executor="factored")
    expected = logits(model, ids)
    compiled = torch.compile(model, backend="eager")
    assert (logits(compiled, ids) - expected).abs().max() < 1e-5
    other = logits(compiled, ids, pack_choices=[None, "low", "dense"])
    assert (other[0] - logits(fused(llama, None), ids)[0]).abs().max() < 1e-5
    ungraft_routed(model)
    assert (logits(compiled, ids) - logits(load_model(llama / "base"), ids)).abs().max() < 1e-5


@given(choices=st.lists(st.integers(-1, 3), min_size=1, max_size=9), positions=st.integers(1, 3))
def test_cutting_into_groups_and_joining_gives_every_row_back(choices: list[int], positions: int):
    decision = Decision(("a", "b", "c", "d"), tuple(None if one == BASE else one for one in choices))
    batch = Batch(Identity(), decision, (0, 1, 2, 3))
    groups = batch.groups(batch.packs)
    values = torch.arange(len(choices) * positions).view(-1, 1)
    parts = groups.cut(values)
    for pack, part in zip(groups.packs, parts, strict=True):
        rows = {choices[int(value) // positions] for value in part.flatten()} if len(values) > 1 else {pack}
        assert rows == {pack}
    assert torch.equal(groups.join(parts), values) or len(values) == 1


def test_a_model_with_another_forward_is_refused(llama: Path):
    model = load_model(llama / "base")
    layer = model.model.layers[0]
    layer.forward = layer.forward
    with pytest.raises(UsageError, match=r"forward of model\.layers\.0 was replaced"):
        graft_routed(model, [llama / "low"], router=[None])


def test_a_convolutional_model_is_refused_clearly_or_routed(tmp_path: Path):
    base = save_model("resnet", tmp_path / "base", dtype=torch.float32)
    build_pack(tune(base, tmp_path / "tuned", size=0.05, only="weight"), base, tmp_path / "pack", name="pack")
    images = torch.randn(3, 3, 32, 32)
    model = graft_routed(
        make_model("resnet", dtype=torch.float32), [tmp_path / "pack"], router=["pack"], notice=lambda _: None
    )
    with pytest.raises(UsageError, match="no input to route by"):
        model(pixel_values=images)


def images_of_rows(config: Any, counts: list[int]) -> dict[str, torch.Tensor]:
    """Return inputs of rows with so many images each."""
    image = [6, *[config.image_token_id] * config.mm_tokens_per_image, 7]
    rows = [image * count + [9] for count in counts]
    length = max(map(len, rows))
    ids = torch.tensor([[8] * (length - len(row)) + row for row in rows])
    size = config.vision_config.image_size
    pixels = torch.randn(sum(counts), 3, size, size, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "pixel_values": pixels, "token_type_ids": (ids == config.image_token_id).long()}


@pytest.mark.parametrize("name", ["low", "dense"])
def test_images_go_with_their_rows_or_are_refused(places: Callable[..., Path], name: str) -> None:
    folder = places("gemma_images")
    model = load_model(folder / "base")
    even, uneven = images_of_rows(model.config, [1, 1]), images_of_rows(model.config, [2, 0])
    with torch.no_grad():
        graft(model, [folder / name], trust_base=True)
        wanted, of_uneven = model(**even).logits, model(**uneven).logits
        ungraft(model)
        of_base = model(**even).logits
        graft_routed(model, [folder / name], router=[None, None], trust_base=True)
        mixed = model(**even, pack_choices=[name, None]).logits
        assert torch.allclose(mixed[0], wanted[0], atol=1e-4) and torch.allclose(mixed[1], of_base[1], atol=1e-4)
        assert torch.allclose(model(**uneven, pack_choices=[name, name]).logits, of_uneven, atol=1e-4)
        with pytest.raises(UsageError, match="different numbers of images"):
            model(**uneven, pack_choices=[name, None])
