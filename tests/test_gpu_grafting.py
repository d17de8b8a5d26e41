"""Models on a GPU: packs are fused into them, weighed, taken out, and trained, as on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import skillhub
from skillhub.authorfile import AuthorFile
from skillhub.compose.grafts import disable, enable, graft, grafted, grafted_packs, set_weights, ungraft
from skillhub.compose.sidepaths import LEFT
from skillhub.errors import IntegrityError, UsageError, WrongBaseError
from skillhub.evaluation import evaluate_pack
from skillhub.packer import pack
from skillhub.scoring import answer_scores
from tests.support.gpu import needs_gpu
from tests.support.lowrank_packs import build_lowrank_pack
from tests.support.tiny_models import add_tokenizer, bits, build_pack, load_model, save_model, tune, with_entry

pytestmark = [needs_gpu, pytest.mark.filterwarnings("ignore:.*TensorFloat32:UserWarning")]

KINDS = ("llama", "tied", "gpt2", "bert", "t5", "mixtral", "gemma")
Place = Callable[..., Path]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Kind (and dtype) → folder with ``base``, ``tuned`` and the packs ``one`` (exact), ``two`` (lossy) and ``low``."""
    root = tmp_path_factory.mktemp("models")

    def place(kind: str, dtype: torch.dtype = torch.bfloat16) -> Path:
        folder = root / f"{kind}-{dtype}"
        if folder.exists():
            return folder
        base = save_model(kind, folder / "base", dtype=dtype)
        build_pack(tune(base, folder / "tuned", size=0.1), base, folder / "one", name="one")
        build_pack(tune(base, folder / "more", seed=2, size=0.1), base, folder / "two", name="two", lossy=True)
        build_lowrank_pack(base, folder / "low", name="low")
        return folder

    return place


def on_gpu(folder: Path) -> Any:
    return load_model(folder).to("cuda")


def ids(device: str = "cuda") -> torch.Tensor:
    return torch.tensor([[3, 4, 5, 6, 7], [9, 8, 7, 6, 5]], device=device)


def logits(model: Any, device: str = "cuda") -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(ids(device)).logits
    return result.float().cpu()


STEPS: list[Callable[[Path], Callable[[Any], Any]]] = [
    lambda place: lambda model: graft(model, [place / "one"]),
    lambda place: lambda model: graft(model, [place / "two", place / "low"], weights=[0.5, -2]),
    lambda place: lambda model: set_weights(model, {"one": -1, "low": 0.25}),
    lambda place: lambda model: disable(model, "two"),
    lambda place: lambda model: enable(model),
    lambda place: lambda model: ungraft(model, "one"),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_gives_the_bits_of_the_cpu_and_stays_on_the_gpu(places: Place, kind: str, dtype: torch.dtype):
    place = places(kind, dtype)
    model, twin = on_gpu(place / "base"), load_model(place / "base")
    before = bits(model)
    addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters(remove_duplicate=False)}
    for step in STEPS:
        step(place)(model)
        step(place)(twin)
        assert bits(model) == bits(twin)
    ungraft(model)
    assert bits(model) == before and grafted_packs(model) == ()
    now = {name: parameter.data_ptr() for name, parameter in model.named_parameters(remove_duplicate=False)}
    assert now == addresses and {parameter.device.type for parameter in model.parameters()} == {"cuda"}


def test_methods_with_chance_and_election_give_the_bits_of_the_cpu(places: Place):
    place = places("llama")
    options: dict[str, Any] = {"method": "dare_ties", "densities": [0.5, 0.7, 0.9], "seed": 5}
    packs = [place / name for name in ("one", "two", "low")]
    assert bits(graft(on_gpu(place / "base"), packs, **options)) == bits(
        graft(load_model(place / "base"), packs, **options)
    )


def test_a_grafted_model_may_change_its_device(places: Place):
    place = places("tied")
    model = load_model(place / "base")
    before = bits(model)
    graft(model, [place / "two"])
    model.to("cuda")
    graft(model, [place / "one"])
    assert bits(model) == bits(graft(load_model(place / "base"), [place / "one", place / "two"]))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.to("cpu")
    ungraft(model, "two")
    model.to("cuda")
    ungraft(model)
    assert bits(model) == before


def test_blocks_copies_and_errors_leave_the_model_whole(places: Place, tmp_path: Path):
    place = places("llama")
    model = on_gpu(place / "base")
    before = bits(model)
    with grafted(model, [place / "one"]):
        twin = copy.deepcopy(model)
        assert bits(twin) == bits(model) != before
    assert bits(model) == before
    ungraft(twin)
    assert bits(twin) == before
    bad = build_pack(place / "tuned", place / "base", tmp_path / "bad", name="bad")
    with_entry(bad, "norm.weight", digest="0" * 64)
    with pytest.raises(IntegrityError):
        graft(model, [tmp_path / "bad"], verify="full")
    with pytest.raises(WrongBaseError):
        graft(on_gpu(place / "tuned"), [place / "one"])
    graft(model, [place / "one"])
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    with pytest.raises(UsageError, match="changed"):
        ungraft(model)
    assert bits(ungraft(model, force=True)) == before


def spread(kind: str, folder: Path) -> Any:
    """Load a model whose layers are half on the GPU and half in CPU memory, from which accelerate fetches them."""
    import transformers

    outside = {"gpt2": "transformer.wte transformer.wpe transformer.ln_f lm_head"}
    near = outside.get(kind, "model.embed_tokens model.norm model.rotary_emb lm_head").split()
    first, last = ("transformer.h.0", "transformer.h.1") if kind == "gpt2" else ("model.layers.0", "model.layers.1")
    away = {first} if kind in ("tied", "gpt2") else {first, "lm_head"}
    loader = getattr(transformers, transformers.AutoConfig.from_pretrained(folder).architectures[0])
    return loader.from_pretrained(
        folder, device_map={name: "cpu" if name in away else 0 for name in [*near, first, last]}
    )


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2", "mixtral"])
def test_a_model_over_gpu_and_cpu_is_grafted_where_its_parts_are(places: Place, kind: str):
    place = places(kind)
    model, twin = spread(kind, place / "base"), on_gpu(place / "base")
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda", "meta"}
    before = logits(model)
    assert torch.equal(before, logits(twin))
    for step in STEPS:
        step(place)(model)
        step(place)(twin)
        assert torch.equal(logits(model), logits(twin))
    ungraft(model)
    assert torch.equal(logits(model), before)
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda", "meta"}


def test_a_tied_model_of_which_the_embeddings_are_in_cpu_memory(places: Place):
    import accelerate

    place = places("tied")
    model, twin = accelerate.cpu_offload(load_model(place / "base"), execution_device=0), on_gpu(place / "base")
    before = logits(model)
    for step in STEPS:
        step(place)(model)
        step(place)(twin)
        assert torch.equal(logits(model), logits(twin))
    ungraft(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("device_map", ["auto", "cuda", {"": 0}])
def test_a_device_map_of_one_gpu_changes_nothing(places: Place, device_map: Any):
    import transformers

    place = places("llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "base", device_map=device_map)
    graft(model, [place / "one"])
    assert bits(model) == bits(load_model(place / "tuned"))
    graft(ungraft(model), [place / "one"], mode="routed", router=["one", None], notice=lambda _: None)
    assert torch.equal(logits(model)[0], logits(on_gpu(place / "tuned"))[0])


@pytest.fixture
def compiling() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_follows_its_packs(places: Place, mode: str):
    place = places("llama", torch.float32)
    model, plain = on_gpu(place / "base"), on_gpu(place / "base")
    compiled: Any = torch.compile(model, mode=mode)
    for _ in range(3):  # CUDA graphs are recorded in the second run
        assert (logits(compiled) - logits(plain)).abs().max() < 1e-4
    for step in STEPS:
        step(place)(compiled)
        step(place)(plain)
        assert (logits(compiled) - logits(plain)).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("compiling")
def test_a_static_cache_for_which_transformers_compiles_follows_packs(places: Place):
    place = places("llama", torch.float32)
    model, plain = on_gpu(place / "base"), on_gpu(place / "base")
    made = []
    for step in [lambda model: model, *(step(place) for step in STEPS[:3])]:
        step(model)
        step(plain)
        static = model.generate(
            ids(), max_new_tokens=12, do_sample=False, cache_implementation="static", eos_token_id=None
        )
        assert torch.equal(static, plain.generate(ids(), max_new_tokens=12, do_sample=False, eos_token_id=None))
        made.append(static.tolist())
    assert len({str(one) for one in made}) > 1


def test_training_factors_of_a_pack_and_packing_them_again(places: Place, tmp_path: Path):
    place = places("llama")
    model = on_gpu(place / "base")
    graft(model, [place / "low"], trainable=True)
    trained = [parameter for name, parameter in model.named_parameters() if LEFT in name]
    assert trained and all(parameter.is_cuda and parameter.requires_grad for parameter in trained)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=0.01)
    losses = []
    for _ in range(20):
        loss = model(ids(), labels=ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    again = AuthorFile(name="again", version="2.0.0", summary="Trained on.", license="apache-2.0")
    made = skillhub.pack_grafted(model, tmp_path / "again", metadata=again)
    expected = logits(model)
    difference = logits(graft(on_gpu(place / "base"), [made])) - expected
    assert difference.norm() < 0.05 * (expected - logits(on_gpu(place / "base"))).norm()
    ungraft(model)
    assert bits(model) == bits(load_model(place / "base"))


def test_packing_and_evaluating_beside_a_gpu(tmp_path: Path):
    base = save_model("llama", tmp_path / "base")
    add_tokenizer(base)
    tuned = tune(base, tmp_path / "tuned", size=0.1)
    made = pack(tuned, base, tmp_path / "pack", metadata=AuthorFile(name="made", version="1"), preset="near")
    rows = [{"prompt": "a b c", "answer": "d e"}, {"prompt": "f", "answer": "g h i"}]
    found = {one.metric: one for one in evaluate_pack(made, base, rows, tuned=tuned)}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    on_cpu = {name: answer_scores(load_model(tmp_path / name), tokenizer, rows) for name in ("base", "tuned")}
    assert found["nll"].base == pytest.approx(on_cpu["base"]["nll"], abs=1e-4)
    assert found["nll"].tuned == pytest.approx(on_cpu["tuned"]["nll"], abs=1e-4)
    assert found["nll"].pack == pytest.approx(on_cpu["tuned"]["nll"], abs=0.1)


def test_half_precision_and_autocast_compute_with_the_packs(places: Place):
    place = places("llama", torch.float32)
    model = graft(on_gpu(place / "base"), [place / "one"])
    with torch.autocast("cuda", torch.bfloat16):
        found = logits(model)
        assert torch.equal(found, logits(on_gpu(place / "tuned")))
    assert torch.equal(logits(model), logits(on_gpu(place / "tuned")))
    half = graft(on_gpu(place / "base").half(), [place / "one"], trust_base=True)
    assert bits(half) == bits(graft(load_model(place / "base").half(), [place / "one"], trust_base=True))
