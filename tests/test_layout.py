from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from skillhub import layout as layout_module
from skillhub.canonical import is_buffer
from skillhub.checkpoints import open_checkpoint
from skillhub.errors import UsageError
from skillhub.fingerprint import fingerprint_checkpoint
from skillhub.layout import GatheredSlot, ViewSlot, fingerprint_model, fingerprint_slots, layout_of

DECODER: dict[str, Any] = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2,
}  # fmt: skip
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
EXPERTS: dict[str, Any] = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "pad_token_id")
ENCODER = {name: DECODER[name] for name in SIZES}
GPT2: dict[str, Any] = {
    "vocab_size": 24, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": 24, "d_model": 16, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
GEMMA3 = {
    "text_config": {**DECODER, "model_type": "gemma3_text"}, "vision_config": {**VISION, "model_type": "siglip_vision_model"},
    "mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7,
}  # fmt: skip

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama-untied": ("LlamaConfig", "LlamaForCausalLM", DECODER | UNTIED),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", DECODER | TIED),
    "llama-headless": ("LlamaConfig", "LlamaModel", DECODER),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", DECODER | TIED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", DECODER | UNTIED),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", DECODER | TIED),
    "gemma3-text": ("Gemma3TextConfig", "Gemma3ForCausalLM", DECODER | TIED),
    "gemma3-multimodal": ("Gemma3Config", "Gemma3ForConditionalGeneration", GEMMA3),
    "gpt2-tied": ("GPT2Config", "GPT2LMHeadModel", GPT2 | TIED),
    "gpt2-untied": ("GPT2Config", "GPT2LMHeadModel", GPT2 | UNTIED),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", DECODER | UNTIED),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", DECODER),
    "bert": ("BertConfig", "BertForMaskedLM", ENCODER),
    "bert-headless": ("BertConfig", "BertModel", ENCODER),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", ENCODER),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
    "t5-untied": ("T5Config", "T5ForConditionalGeneration", T5 | UNTIED),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", DECODER | {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen2-moe": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM", DECODER | EXPERTS | {"shared_expert_intermediate_size": 12}),
    "qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", DECODER | EXPERTS),
    "hrm-text": ("HrmTextConfig", "HrmTextForCausalLM", DECODER),
}
GATHERED = {"hrm-text"}
"""Models of which some tensors are saved fused from several parameters, so that there is no view."""


@pytest.fixture(autouse=True, scope="module")
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLHUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    config, model, options = MODELS[name]
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**options)).to(dtype).eval()


def saved(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_slots_are_what_a_save_writes_and_can_be_written(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = make(name, dtype)
    layout = layout_of(model)
    stored = saved(model, tmp_path / "before")
    slots = {slot.saved_name: slot for slot in layout.slots.values()}
    assert slots.keys() == {key for key, tensor in stored.items() if not is_buffer(key, tuple(tensor.shape))}
    assert all(same(slot.read(), stored[key]) and slot.shape == slot.read().shape for key, slot in slots.items())
    assert any(isinstance(slot, GatheredSlot) for slot in slots.values()) is (name in GATHERED)
    assert fingerprint_model(model) == fingerprint_checkpoint(tmp_path / "before")
    assert layout.names == open_checkpoint(tmp_path / "before").names

    before = {key: id(parameter) for key, parameter in model.named_parameters()}
    written = {}
    for number, (key, slot) in enumerate(slots.items()):
        values = torch.arange(slot.read().numel()).reshape(slot.shape) % 97 + number
        written[key] = values.to(slot.dtype) / 64 if slot.dtype.is_floating_point else values.to(slot.dtype)
        slot.write(written[key])
    after = saved(model, tmp_path / "after")
    assert all(same(after[key], tensor) for key, tensor in written.items())
    assert {key: id(parameter) for key, parameter in model.named_parameters()} == before
    assert fingerprint_model(model) == fingerprint_checkpoint(tmp_path / "after")

    again = type(model).from_pretrained(tmp_path / "after", dtype=dtype)
    reloaded = layout_of(again)
    assert reloaded.names == layout.names
    assert all(same(reloaded.slots[slot.name].read(), written[slot.saved_name]) for slot in slots.values())
    assert fingerprint_model(again) == fingerprint_model(model)


def test_experts_are_views_of_the_fused_parameter() -> None:
    model = make("mixtral")
    slots = layout_of(model).slots
    up = slots["layers.0.block_sparse_moe.experts.2.w3.weight"]
    assert isinstance(up, ViewSlot)
    assert up.parameter_name == "model.layers.0.mlp.experts.gate_up_proj" and up.parameter_names == (up.parameter_name,)
    assert torch.equal(up.read(), model.model.layers[0].mlp.experts.gate_up_proj[2, 20:])
    up.read().zero_()
    assert not model.model.layers[0].mlp.experts.gate_up_proj[2, 20:].any()


def test_tensors_saved_fused_are_gathered_and_scattered() -> None:
    model = make("hrm-text")
    fused = next(slot for slot in layout_of(model).slots.values() if slot.name.endswith("gate_up_proj.weight"))
    parameters = [model.get_parameter(name) for name in fused.parameter_names]
    assert [name.split(".")[-2] for name in fused.parameter_names] == ["gate_proj", "up_proj"]
    assert torch.equal(fused.read(), torch.cat(parameters))
    fused.write(torch.arange(fused.read().numel(), dtype=torch.float32).reshape(fused.shape))
    assert torch.equal(torch.cat(parameters).flatten(), torch.arange(fused.read().numel(), dtype=torch.float32))


def test_slots_follow_a_model_that_changes_dtype() -> None:
    model = make("llama-untied")
    slot = layout_of(model).slots["norm.weight"]
    model.to(torch.bfloat16)
    assert slot.dtype == slot.read().dtype == torch.bfloat16


def test_what_does_not_fit_is_not_written() -> None:
    model = make("llama-untied", torch.bfloat16)
    slot = layout_of(model).slots["norm.weight"]
    for tensor in (torch.zeros(16), torch.zeros(8, dtype=torch.bfloat16), torch.zeros(1, 16, dtype=torch.bfloat16)):
        with pytest.raises(UsageError, match=r"norm\.weight"):
            slot.write(tensor)
    assert torch.equal(slot.read(), torch.ones(16, dtype=torch.bfloat16))


def test_a_resized_model_needs_a_new_layout() -> None:
    model = make("llama-tied")
    slot = layout_of(model).slots["embed_tokens.weight"]
    model.resize_token_embeddings(30)
    with pytest.raises(UsageError, match="another shape"):
        slot.read()
    assert layout_of(model).slots["embed_tokens.weight"].shape == (30, 16)


def test_a_copied_head_is_a_repeat() -> None:
    untied, tied = make("llama-untied"), make("llama-tied")
    assert layout_of(untied).repeats() == {} == layout_of(tied).repeats()
    with torch.no_grad():
        untied.lm_head.weight.copy_(untied.model.embed_tokens.weight)
    assert layout_of(untied).repeats() == {"lm_head.weight": "embed_tokens.weight"}
    assert "lm_head.weight" not in [record.name for record in fingerprint_model(untied).tensors]


def test_only_changed_parameters_are_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("mixtral")
    layout = layout_of(model)
    hashed: list[str] = []
    record_array = layout_module.record_array

    def counted(name: str, *arguments: Any, **options: Any) -> Any:
        hashed.append(name)
        return record_array(name, *arguments, **options)

    monkeypatch.setattr(layout_module, "record_array", counted)
    seen: list[int] = []
    first = fingerprint_slots(layout, progress=seen.append)
    assert sorted(hashed) == layout.names
    hashed.clear()
    again: list[int] = []
    assert fingerprint_slots(layout_of(model), progress=again.append) == first and not hashed
    assert sum(seen) == sum(again) == sum(slot.read().nbytes for slot in layout.slots.values())
    layout.slots["norm.weight"].write(torch.full((16,), 2.0))
    layout.slots["layers.1.block_sparse_moe.experts.0.w2.weight"].read().zero_()
    assert fingerprint_slots(layout) != first
    assert sorted(hashed) == [f"layers.1.block_sparse_moe.experts.{i}.w2.weight" for i in range(3)] + ["norm.weight"]


def test_memos_go_with_their_model() -> None:
    gc.collect()
    before = len(layout_module._memos)
    model = make("llama-untied")
    fingerprint_model(model)
    assert len(layout_module._memos) > before
    del model
    gc.collect()
    assert len(layout_module._memos) == before


def test_originals_count_instead_of_what_was_grafted() -> None:
    model = make("llama-untied")
    layout = layout_of(model)
    before = fingerprint_slots(layout)
    original = layout.slots["norm.weight"].read().clone()
    layout.slots["norm.weight"].write(original * 2)
    assert fingerprint_slots(layout) != before
    assert fingerprint_slots(layout, {"norm.weight": original}) == before


def test_models_without_weights_in_memory_are_refused() -> None:
    with torch.device("meta"):
        model = make("llama-untied")
    layout = layout_of(model)
    assert layout.slots["norm.weight"].shape == (16,)
    with pytest.raises(UsageError, match="no weights in memory"):
        fingerprint_slots(layout)


def test_other_modules_are_refused_with_the_remedy() -> None:
    model = make("llama-untied")
    model._hf_peft_config_loaded = True
    for module, word in ((torch.nn.Linear(2, 2), "transformers"), (model, "adapters")):
        with pytest.raises(UsageError, match=word) as caught:
            layout_of(module)
        assert caught.value.hint
