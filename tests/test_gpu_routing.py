"""Routed packs on a GPU: every row as its pack alone, whichever way it is computed, and within the GPU's memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from skillhub.authorfile import AuthorFile
from skillhub.compose.grafts import graft, ungraft
from skillhub.compose.routed import decide, graft_routed, last_decision, ungraft_routed
from skillhub.devices import available_bytes, choose_device, device_for
from skillhub.errors import UsageError
from skillhub.packdeltas import open_delta
from skillhub.packer import pack
from skillhub.packs import open_pack
from skillhub.routing import find_router
from skillhub.routing.arrow import ArrowRouter
from skillhub.routing.basecards import load_reader
from skillhub.routing.cardmaking import encode, make_card, prefill_of
from skillhub.routing.cardrouter import CardRouter
from skillhub.routing.classifier import train_classifier
from skillhub.routing.decisions import Decision
from tests.routing_examples import save_base, shouts, sums, tuned
from tests.support.gpu import full_gpu, needs_gpu
from tests.support.lowrank_packs import build_lowrank_pack
from tests.support.tiny_models import bits, build_pack, load_model, save_model, tune

pytestmark = [needs_gpu, pytest.mark.filterwarnings("ignore:.*TensorFloat32:UserWarning")]

KINDS = ("llama", "tied", "gpt2", "bert", "t5", "mixtral", "qwen2", "qwen2_moe", "gemma")
EXECUTORS = ("grouped", "factored")
NAMES = ("low", "mixed", "dense")
CHOICES = ["low", None, "dense", "mixed", "low"]
DENSE = "norm|ln_|bias|embed|wte|shared|LayerNorm"
Place = Callable[..., Path]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Kind (and dtype) → folder with ``base`` and packs: of factors, of factors and dense tensors, and all dense."""
    root = tmp_path_factory.mktemp("routed")

    def place(kind: str, dtype: torch.dtype = torch.float32) -> Path:
        folder = root / f"{kind}-{dtype}"
        if folder.exists():
            return folder
        base = save_model(kind, folder / "base", dtype=dtype)
        build_lowrank_pack(base, folder / "low", seed=1, size=0.2)
        build_lowrank_pack(base, folder / "mixed", seed=2, rank=3, dense=DENSE, size=0.1)
        build_pack(tune(base, folder / "tuned", seed=3, size=0.05), base, folder / "dense", name="dense")
        return folder

    return place


def base_of(folder: Path, dtype: torch.dtype | None = None) -> Any:
    return load_model(folder / "base").to("cuda", dtype)


def routed(folder: Path, router: Any = None, dtype: torch.dtype | None = None, **options: Any) -> Any:
    options = {"notice": lambda _: None, **options}
    packs = [folder / name for name in NAMES]
    return graft_routed(base_of(folder, dtype), packs, router=router or [], trust_base=True, **options)


def fused(folder: Path, name: str | None, dtype: torch.dtype | None = None) -> Any:
    model = base_of(folder, dtype)
    return graft(model, [folder / name], trust_base=True) if name else model


def logits(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    if getattr(model.config, "is_encoder_decoder", False):
        options["decoder_input_ids"] = ids
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=ids, attention_mask=mask, **options)[0]
    return output


def some_ids(rows: int, length: int = 6) -> torch.Tensor:
    return torch.randint(3, 24, (rows, length), generator=torch.Generator().manual_seed(0)).to("cuda")


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_gets_what_its_pack_alone_gives(places: Place, kind: str, executor: str):
    folder, ids = places(kind), some_ids(5)
    model = routed(folder, executor=executor)
    before, found = bits(model), logits(model, ids, pack_choices=CHOICES)
    base = logits(base_of(folder), ids)
    for row, name in enumerate(CHOICES):
        expected = logits(fused(folder, name), ids)[row]
        assert (found[row] - expected).abs().max() < 1e-4
        assert name is None or (base[row] - expected).abs().max() > 1e-3
    for name in NAMES:
        agreed = logits(model, ids, pack_choices=[name] * 5)
        assert (agreed - logits(fused(folder, name), ids)).abs().max() < 1e-5
    assert bits(model) == before
    ungraft_routed(model)
    assert torch.equal(logits(model, ids), base)


@pytest.mark.parametrize("memory", ["factors", "codes", 20_000])
def test_weights_that_are_not_kept_in_memory_are_made_on_the_gpu(places: Place, memory: str | int):
    folder, ids = places("mixtral"), some_ids(5)
    expected = logits(routed(folder, executor="factored"), ids, pack_choices=CHOICES)
    found = logits(routed(folder, executor="factored", memory=memory), ids, pack_choices=CHOICES)
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("executor", EXECUTORS)
def test_mixtures_of_packs(places: Place, executor: str):
    folder, ids = places("llama"), some_ids(4)
    mixture = torch.tensor([[0.5, 0.5, 0], [0, 0, 0], [0.2, 0.3, 0.5], [0, -0.5, 1.5]])
    model = routed(folder, executor=executor)
    for device in ("cpu", "cuda"):
        found = logits(model, ids, pack_choices=Decision(NAMES, (None,) * 4, None, mixture.to(device)))
        for row, weights in enumerate(mixture.tolist()):
            expected = base_of(folder)
            if any(weights):
                graft(expected, [folder / name for name in NAMES], weights=weights, trust_base=True)
            assert (found[row] - logits(expected, ids)[row]).abs().max() < 1e-4


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"use_cache": False}, {"num_beams": 2, "num_return_sequences": 2}], ids=str
)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "t5"])
def test_a_mixed_batch_generates_what_each_pack_alone_does(
    places: Place, kind: str, executor: str, options: dict[str, Any]
):
    folder, ids = places(kind), some_ids(5)
    mask = torch.ones_like(ids)
    ids[0, :2], mask[0, :2] = 2, 0  # padding on the left
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, **options}
    answers = options.get("num_return_sequences", 1)
    found = routed(folder, executor=executor).generate(ids, attention_mask=mask, pack_choices=CHOICES, **options)
    different = set()
    for row, name in enumerate(CHOICES):
        expected = fused(folder, name).generate(ids, attention_mask=mask, **options)
        own = slice(row * answers, (row + 1) * answers)
        assert torch.equal(found[own], expected[own])
        different.add(str(expected.tolist()))
    assert len(different) > 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_static_cache_for_which_transformers_would_compile(places: Place, executor: str):
    folder, ids = places("llama"), some_ids(5)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    model = routed(folder, executor=executor)
    expected = model.generate(ids, pack_choices=CHOICES, **options)
    assert torch.equal(model.generate(ids, pack_choices=CHOICES, cache_implementation="static", **options), expected)
    ungraft_routed(model)
    static = model.generate(ids, cache_implementation="static", **options)
    assert torch.equal(static, base_of(folder).generate(ids, **options))
    torch._dynamo.reset()


@contextmanager
def tensor_floats(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def errors_of(folder: Path, found: torch.Tensor, ids: torch.Tensor, dtype: torch.dtype | None) -> tuple[float, float]:
    """Return how far rows are from what their packs give in fp64, and how far the fused models are."""
    mine, theirs = [], []
    for row, name in enumerate(CHOICES):
        wide = base_of(folder, torch.float64)
        exact = logits(graft(wide, [folder / name], trust_base=True) if name else wide, ids)[row]
        mine.append((found[row] - exact).pow(2).mean())
        theirs.append((logits(fused(folder, name, dtype), ids)[row] - exact).pow(2).mean())
    return float(sum(mine)) ** 0.5, float(sum(theirs)) ** 0.5


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("how", ["bf16", "fp16", "tf32", "autocast"])
def test_in_lower_precision_the_error_is_no_larger_than_that_of_fused_models(
    places: Place, kind: str, executor: str, how: str
):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(how)
    folder, ids = places(kind), some_ids(5, 16)
    with tensor_floats(how == "tf32"), torch.autocast("cuda", torch.bfloat16, enabled=how == "autocast"):
        model = routed(folder, executor=executor, dtype=dtype)
        mine, theirs = errors_of(folder, logits(model, ids, pack_choices=CHOICES), ids, dtype)
    assert mine < 1.3 * theirs + 1e-5


def test_a_model_may_move_and_be_copied(places: Place):
    folder, ids = places("llama"), some_ids(5)
    model = routed(folder, CHOICES, executor="factored")
    expected = logits(model, ids)
    twin = copy.deepcopy(model)
    model.to("cpu")
    assert (logits(model, ids.cpu()) - expected.cpu()).abs().max() < 1e-4
    model.to("cuda")
    assert (logits(model, ids) - expected).abs().max() < 1e-5
    ungraft(model)
    assert torch.equal(logits(twin, ids), expected)


def test_a_cache_on_the_gpu_keeps_its_decision_through_reordering_and_selecting(places: Place):
    folder, ids = places("llama"), some_ids(3)
    model = routed(folder, ["low", "dense", None], executor="factored")
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        cache.reorder_cache(torch.tensor([2, 0, 1], device="cuda"))
        cache.batch_select_indices(torch.tensor([0, 2], device="cuda"))
        cache.batch_repeat_interleave(2)
        found = model(ids[:1, :1].expand(4, 1), past_key_values=cache).logits
    decision = last_decision(model)
    assert decision is not None and decision.labels == (None, None, "dense", "dense")
    for row, name, origin in ((0, None, 2), (3, "dense", 1)):
        single = fused(folder, name)
        with torch.no_grad():
            past = single(ids[origin : origin + 1], use_cache=True).past_key_values
            expected = single(ids[:1, :1], past_key_values=past).logits[0]
        assert (found[row] - expected).abs().max() < 1e-4


def test_memory_of_the_gpu_is_told_counted_and_refused(tmp_path: Path):
    base = save_model("tied", tmp_path / "base", vocab_size=1_000_000)  # 32 MB of embeddings
    build_pack(tune(base, tmp_path / "tuned", size=0.05, only="embed"), base, tmp_path / "wide", name="wide")
    model = load_model(base).to("cuda")
    ids = some_ids(2)
    expected = logits(graft(load_model(base).to("cuda"), [tmp_path / "wide"]), ids)[0]
    told: list[str] = []
    options: dict[str, Any] = {"router": ["wide", None], "trust_base": True, "notice": told.append}
    with full_gpu(16 << 20):
        assert choose_device("auto").type == device_for(load_model(base)).type == "cpu"
        with pytest.raises(UsageError, match=r"take 32\.0 MB beside the model, and cuda:0 has .* MB left"):
            graft_routed(model, [tmp_path / "wide"], **options)
    assert choose_device("auto").type == device_for(load_model(base)).type == "cuda"
    before = torch.cuda.memory_allocated()
    graft_routed(model, [tmp_path / "wide"], **options)
    assert "Routing keeps 32.0 MB of the packs' weights beside the model: wide 32.0 MB." in told
    assert 32_000_000 <= torch.cuda.memory_allocated() - before < 40_000_000
    assert torch.equal(logits(model, ids)[0], expected)
    ungraft_routed(model)
    held = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    del held  # torch keeps the memory for what comes next
    left = available_bytes(torch.device("cuda", 0))
    assert left is not None and left >= torch.cuda.mem_get_info()[0] + (1 << 30)
    torch.cuda.empty_cache()


METADATA = {name: AuthorFile(name=name, version="1.0.0") for name in ("sums", "shouts")}


@pytest.fixture(scope="module")
def carded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base that has a tokenizer, two packs with cards, and a pack without."""
    folder = tmp_path_factory.mktemp("carded")
    base = save_base(folder / "base")
    for number, (name, prompts) in enumerate((("sums", sums(32)), ("shouts", shouts(32)))):
        pack(
            tuned(base, folder / f"{name}-tuned", number + 1),
            base,
            folder / name,
            metadata=METADATA[name],
            prompts=prompts,
        )
    build_pack(tuned(base, folder / "plain-tuned", 4), base, folder / "plain", name="plain")
    return folder


TEXTS = [*sums(6, seed=5), *shouts(6, seed=5), "Where is the station?", "He closed the door and left."]


def test_cards_made_and_read_on_a_gpu_decide_as_on_the_cpu(carded: Path):
    gpu, tokenizer = load_reader(carded / "base")
    assert gpu.device.type == "cuda"
    gpu.float()
    found = []
    for model in (gpu, copy.deepcopy(gpu).to("cpu")):
        cards = {"sums": make_card(model, tokenizer, sums(32))[0], "shouts": make_card(model, tokenizer, shouts(32))[0]}
        prefill = prefill_of(model, [encode(tokenizer, text, is_chat=False) for text in TEXTS])
        found.append(CardRouter(cards).route(prefill))
    torch.testing.assert_close(found[0].scores, found[1].scores, atol=1e-2, rtol=1e-2)
    assert found[0].choices == found[1].choices
    assert set(found[0].labels[:6]) <= {"sums", None} and found[0].labels[6:] == ("shouts",) * 6 + (None,) * 2


def test_a_routed_model_decides_by_cards_and_generates(carded: Path):
    _, tokenizer = load_reader(carded / "base")
    model = load_model(carded / "base").float().to("cuda")
    graft_routed(model, [carded / "sums", carded / "shouts"], notice=lambda _: None)
    tokenizer.padding_side = "left"
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True, return_token_type_ids=False).to("cuda")
    found = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    decision = last_decision(model)
    assert decision is not None and decision.labels[6:] == ("shouts",) * 6 + (None,) * 2
    assert decide(model, **inputs).choices == decision.choices
    with torch.autocast("cuda", torch.bfloat16):
        assert decide(model, **inputs).choices == decision.choices
    for row in (decision.labels.index("sums"), 8, 13):
        name = decision.labels[row]
        single = load_model(carded / "base").float().to("cuda")
        expected = (graft(single, [carded / name]) if name else single).generate(
            **inputs, max_new_tokens=6, do_sample=False
        )
        assert torch.equal(found[row], expected[row])


def test_routing_by_weights_and_by_a_classifier(carded: Path):
    gpu, tokenizer = load_reader(carded / "base")
    cpu = copy.deepcopy(gpu).to("cpu")
    deltas = {name: open_delta(open_pack(carded / name)) for name in ("sums", "plain")}
    scores, choices = [], []
    for model in (gpu, cpu):
        router = find_router(deltas, model, tokenizer=tokenizer, notice=lambda _: None)
        assert isinstance(router, ArrowRouter)
        prefill = prefill_of(model, [encode(tokenizer, text, is_chat=False) for text in TEXTS])
        scores.append(router.route(prefill).scores)
        learned = train_classifier(model, tokenizer, {"sums": sums(40), "shouts": shouts(40)})
        choices.append(learned.route(prefill).choices)
    torch.testing.assert_close(scores[0], scores[1], atol=0.1, rtol=0.1)
    assert choices == [(0,) * 6 + (1,) * 6 + (None,) * 2] * 2
