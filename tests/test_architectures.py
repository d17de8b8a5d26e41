"""Every architecture that is claimed, from a saved base and fine-tune through pack, graft and fuse to a loaded checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from skillhub import packer
from skillhub.authorfile import AuthorFile
from skillhub.checkpoints import open_checkpoint
from skillhub.compose.fusion import fuse
from skillhub.compose.grafts import graft, ungraft
from skillhub.packdeltas import open_delta
from skillhub.packs import Pack
from tests.support.tiny_models import KINDS, bits, build_pack, raw, save_model, tune

TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}
"""So that some matrices have over 4096 elements: smaller ones a pack holds exactly, whatever the budget."""
EXPERTS: dict[str, Any] = {**WIDE, "moe_intermediate_size": 96}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", WIDE),
    "Llama, tied": ("tied", WIDE),
    "Qwen2, tied": ("qwen2", WIDE),
    "Qwen2": ("qwen2", WIDE | UNTIED),
    "Qwen3, tied": ("qwen3", WIDE | TIED),
    "Qwen3": ("qwen3", WIDE),
    "Qwen3.5, with linear attention": ("qwen3_5", WIDE),
    "Gemma 2, tied": ("gemma2", WIDE),
    "Gemma 2": ("gemma2", WIDE | UNTIED),
    "Gemma 3, tied": ("gemma", WIDE),
    "Gemma 3": ("gemma", WIDE | UNTIED),
    "Gemma 3 with images": ("gemma_images", {"text_config": KINDS["gemma_images"][2]["text_config"] | WIDE}),
    "GPT-2, tied": ("gpt2", {"n_embd": 64}),
    "GPT-2": ("gpt2", {"n_embd": 64, **UNTIED}),
    "BERT": ("bert", WIDE),
    "BERT with a tied head": ("bert_mlm", WIDE),
    "BERT with a head": ("bert_mlm", WIDE | UNTIED),
    "T5, tied": ("t5", {"d_model": 64, "d_ff": 96}),
    "T5": ("t5_untied", {"d_model": 64, "d_ff": 96}),
    "Mixtral": ("mixtral", WIDE),
    "Mixtral, tied": ("mixtral", WIDE | TIED),
    "Qwen2-MoE": ("qwen2_moe", EXPERTS),
    "Qwen3-MoE": ("qwen_moe", EXPERTS),
    "Qwen3-MoE, tied": ("qwen_moe", EXPERTS | TIED),
}
CASES = [(name, torch.bfloat16) for name in ARCHITECTURES] + [
    (name, torch.float32) for name in ARCHITECTURES if "tied" not in name
]
LOSSLESS = 1 << 24
"""A budget in bytes that no tiny model needs."""


@dataclass(frozen=True)
class Place:
    """A base, two fine-tunes of it and their packs: ``one`` at a generous budget, ``two`` as small as it gets."""

    base: Path
    tuned: Path
    one: Pack
    two: Pack


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, torch.dtype], Place]:
    root = tmp_path_factory.mktemp("architectures")

    @functools.cache
    def place(name: str, dtype: torch.dtype) -> Place:
        kind, changes = ARCHITECTURES[name]
        folder = root / f"{kind}-{len(list(root.iterdir()))}"
        start = save_model(kind, folder / "start", dtype=dtype, **changes)
        base = tune(start, folder / "base", size=0.05, seed=3)  # no two biases of it are equal, as they are at first
        tuned = tune(base, folder / "tuned", size=0.02)
        other = tune(base, folder / "other", size=0.01, seed=2)
        one = packer.pack(tuned, base, folder / "one", metadata=metadata("one"), budget_bytes=LOSSLESS)
        two = packer.pack(other, base, folder / "two", metadata=metadata("two"), preset="tiny")
        return Place(base, tuned, one, two)

    return place


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{str(case[1]).removeprefix('torch.')}")
def place(request: pytest.FixtureRequest, places: Callable[[str, torch.dtype], Place]) -> Place:
    return places(*request.param)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def metadata(name: str) -> AuthorFile:
    return AuthorFile(name=name, version="1.0.0")


def load_whole(folder: Path) -> Any:
    """Load a checkpoint as the class that its config names, every tensor of which must be there and have a place."""
    import transformers

    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(folder).architectures[0])
    model, info = kind.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def stored_bytes(folder: Path) -> dict[str, bytes]:
    return {name: raw(tensor) for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_a_fused_checkpoint_loads_to_the_bits_of_the_grafted_model_and_grafts_leave_none(place: Place, tmp_path: Path):
    model = load_whole(place.base)
    before = bits(model)
    graft(model, [place.one])
    alone = bits(model)
    assert alone == bits(load_whole(fuse(place.base, [place.one], tmp_path / "one")))
    graft(model, [place.two])
    both = bits(model)
    assert before != alone != both != before
    fused = fuse(place.base, [place.two, place.one], tmp_path / "both")
    assert bits(load_whole(fused)) == both
    model.save_pretrained(tmp_path / "saved")
    assert stored_bytes(tmp_path / "saved") == stored_bytes(fused)
    ungraft(model, place.two)
    assert bits(model) == alone
    assert bits(ungraft(model)) == before


def test_a_pack_gives_the_fine_tune_within_its_error_and_an_exact_one_its_bits(place: Place, tmp_path: Path):
    entries = open_delta(place.one).tensors
    codecs = {codec for entry in entries.values() for codec in entry.codecs}
    assert "exact" in codecs and codecs & {"lowrank", "lossless"}  # so near, all of bf16's bits may cost less
    fused, tuned = (
        open_checkpoint(folder) for folder in (fuse(place.base, [place.one], tmp_path / "one"), place.tuned)
    )
    assert fused.tensors.keys() == tuned.tensors.keys() == entries.keys()
    for name, entry in entries.items():
        value, expected = fused.tensor(name), tuned.tensor(name)
        step = torch.finfo(value.dtype).eps * (expected.double().abs() + entry.max_error)
        assert ((value.double() - expected.double()).abs() <= entry.max_error + step).all(), name
        assert entry.relative_error < 1e-3
    exact = build_pack(place.tuned, place.base, tmp_path / "exact")
    assert stored_bytes(fuse(place.base, [exact], tmp_path / "fused")) == stored_bytes(place.tuned)
