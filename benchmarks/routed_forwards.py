"""The forwards that ``benchmarks/compose.py route`` measures: plain, routed by skillhub, and mixed by PEFT.

On the CPU with one thread, in CPU time; on a GPU in wall time, where the GPU is waited for before the clock is read.
"""

from __future__ import annotations

import gc
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from skillhub.compose.routed import graft_routed, ungraft_routed
from skillhub.routing.decisions import Prefill, early_states
from tests.support.lowrank_packs import build_lowrank_pack

SIZES: dict[str, dict[str, Any]] = {
    "0.69 B": {
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "135 M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "8.0 B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}
ON_CPU, ON_GPU = ("0.69 B", "135 M"), ("0.69 B", "8.0 B")
OF_ADAPTERS = ("8.0 B",)
"""Sizes that are made where they run, with adapters for packs: writing and packing them would take minutes."""
MIXED = ["p0", None, "p1", "p2", "p0", "p1", None, "p2"]
ROWS, LENGTH, RANK, STEPS, TURNS = 8, 128, 16, 4, 7
SHORT, SWITCHES = 8, 21
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Forward = Callable[[], object]


def route_tables(work: Path, device: str = "cpu") -> list[str]:
    """Return the tables of all sizes for a device."""
    logging.disable()
    if device == "cpu":
        torch.set_num_threads(1)
    how = "one thread; CPU milliseconds" if device == "cpu" else f"{torch.cuda.get_device_name()}; wall milliseconds"
    lines = [
        f"Batches of {ROWS} rows of {LENGTH} tokens over three packs (rank {RANK}, all linear layers) and the base, bf16, {how}, "
        f"medians of {TURNS} turns (ratios: of each turn's ratio). Decoding is one token for every row. The router runs the base up to a layer: ¼ of the depth "
        "is the deepest that a routing card may name, ⅙ the deepest that cards of the three skills of `benchmarks/routing.py` do.",
    ]
    for size in ON_CPU if device == "cpu" else ON_GPU:
        lines += [
            "",
            f"**{size}**",
            "",
            "| | prefill ms | of the base | decode ms | of the base |",
            "|---|---|---|---|---|",
        ]
        for row in _rows(work / "routed" / size.replace(" ", ""), size, device):
            print(row, file=sys.stderr, flush=True)
            lines.append(row)
        gc.collect()  # the model is part of cycles
    option = "" if device == "cpu" else f" --device {device}"
    return [*lines, "", f"Command: `python benchmarks/compose.py route{option}`"]


def _rows(folder: Path, size: str, device: str) -> Iterator[str]:
    make = _model_in_memory if size in OF_ADAPTERS else _model
    model = make(folder, SIZES[size], device)
    packs = [folder / f"p{number}" for number in range(3)]
    inputs = {"input_ids": torch.randint(3, 500, (ROWS, LENGTH)), "attention_mask": torch.ones(ROWS, LENGTH).long()}
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    memory, executors = ("auto", ["factored", "grouped"]) if device == "cpu" else ("factors", ["factored"])
    for executor in executors:
        router = EarlyRouter(model)
        graft_routed(model, packs, router=router, executor=executor, memory=memory, trust_base=True)
        calls: dict[str, Callable[..., Any]] = {
            f"{executor}: rows agree": lambda run: run(pack_choices=["p1"] * ROWS),
            f"{executor}: rows differ": lambda run: run(pack_choices=MIXED),
            f"{executor}: rows differ, routing at ⅙ included": lambda run, router=router: router.at(6, run),
            f"{executor}: rows differ, routing at ¼ included": lambda run, router=router: router.at(4, run),
        }
        yield from _compare(model, inputs, calls)
        yield _switching(model, inputs, executor)
        ungraft_routed(model)
    yield from _peft(model, inputs)


class EarlyRouter:
    """Does what a card's router does, and then decides as the measurement wants."""

    def __init__(self, model: Any) -> None:
        self.layers = model.config.num_hidden_layers
        self.layer = self.layers // 4
        self.centres = torch.randn(3, model.config.hidden_size, device=model.device)

    def at(self, part: int, run: Callable[[], Any]) -> Any:
        """Run something while the router looks at the layer that is such a part of the depth."""
        self.layer = self.layers // part
        return run()

    def route(self, prefill: Prefill) -> list[str | None]:
        """Run the base up to the layer, pool and compare; then return the fixed choices."""
        states = early_states(prefill, self.layer).float().mean(1)
        (states @ self.centres.T).argmax(1).tolist()
        return list(MIXED)


def _model(folder: Path, config: dict[str, Any], device: str) -> Any:
    import transformers

    if not folder.exists():
        torch.manual_seed(0)
        made = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(max_position_embeddings=2048, pad_token_id=0, **config)
        )
        made.to(torch.bfloat16).save_pretrained(folder / "base")
        pattern = r"_proj\.weight$"
        for number in range(3):
            build_lowrank_pack(
                folder / "base", folder / f"p{number}", seed=number, rank=RANK, size=0.002, linear=pattern
            )
    return transformers.LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16).to(device).eval()


def _model_in_memory(folder: Path, config: dict[str, Any], device: str) -> Any:
    """Make a random model where it is used, and adapters for it."""
    import transformers

    settings = transformers.LlamaConfig(max_position_embeddings=2048, pad_token_id=0, **config)
    with torch.device(device):
        model: Any = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    for number in range(3):
        factors = {}
        for name, module in model.model.named_modules():
            if name.endswith(tuple(LINEAR)):
                start = f"base_model.model.model.{name}"
                factors[f"{start}.lora_A.weight"] = torch.randn(RANK, module.in_features) * 0.02
                factors[f"{start}.lora_B.weight"] = torch.randn(module.out_features, RANK) * 0.02
        target = folder / f"p{number}"
        target.mkdir(parents=True, exist_ok=True)
        save_file(factors, target / "adapter_model.safetensors", metadata={"format": "pt"})
        lora = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": LINEAR, "task_type": "CAUSAL_LM"}
        (target / "adapter_config.json").write_text(json.dumps(lora))
    return model.eval()


def _prefill(model: Any, inputs: dict[str, Any], **choices: Any) -> Any:
    with torch.inference_mode():
        return model(**inputs, use_cache=True, logits_to_keep=1, **choices)


def _steps(model: Any, inputs: dict[str, Any], **choices: Any) -> Forward:
    """Return a function that decodes some tokens from a cache which a prefill filled, and takes them back."""
    cache = _prefill(model, inputs, **choices).past_key_values
    again = {name: value for name, value in choices.items() if name == "adapter_names"}  # PEFT is told at every step

    def decode() -> None:
        with torch.inference_mode():
            for _ in range(STEPS):
                mask = inputs["attention_mask"].new_ones(ROWS, cache.get_seq_length() + 1)
                model(input_ids=inputs["input_ids"][:, :1], attention_mask=mask, past_key_values=cache, **again)
        cache.crop(-STEPS)

    return decode


def _compare(model: Any, inputs: dict[str, Any], calls: dict[str, Callable[..., Any]]) -> list[str]:
    """Measure calls of a routed model beside the same model without its hooks."""
    routing = model.__dict__["_skillhub_routing"]

    def plain(function: Callable[[], Any]) -> Any:
        routing.remove()
        try:
            return function()
        finally:
            routing.install()

    base_steps = plain(lambda: _steps(model, inputs))
    prefills: dict[str, Forward] = {"base": lambda: plain(lambda: _prefill(model, inputs))}
    decodes: dict[str, Forward] = {"base": lambda: plain(base_steps)}
    for name, call in calls.items():
        prefills[name] = partial(call, partial(_prefill, model, inputs))
        decodes[name] = call(partial(_steps, model, inputs))
    first, then = in_turns(prefills), in_turns(decodes)
    digits = 0 if model.device.type == "cpu" else 1
    return [
        f"| {name} | {first.of(name):.{digits}f} | {first.ratio(name, 'base'):.2f} | "
        f"{then.of(name) / STEPS:.1f} | {then.ratio(name, 'base'):.2f} |"
        for name in prefills
    ]


def _switching(model: Any, inputs: dict[str, Any], executor: str) -> str:
    """Measure what it costs that a batch agrees on another pack than the one before, beside copying the weights twice.

    The batch is one row of a few tokens: what a switch costs does not depend on it, and a longer forward would hide it.
    """
    short = {name: tensor[:1, :SHORT] for name, tensor in inputs.items()}
    touched = [tensor for name, tensor in model.named_parameters() if name.endswith("_proj.weight")]
    copies = [tensor.detach().clone() for tensor in touched]

    def one(name: str) -> None:
        _prefill(model, short, pack_choices=[name])

    def copy() -> None:
        for _ in range(2):
            for tensor, kept in zip(touched, copies, strict=True):
                kept.copy_(tensor.detach())

    forwards: dict[str, Forward] = {
        "stay": lambda: (one("p1"), one("p1")),
        "switch": lambda: (one("p0"), one("p1")),
        "copy": copy,
    }
    found = in_turns(forwards, SWITCHES)
    cost = statistics.median(one - two for one, two in zip(found["switch"], found["stay"], strict=True)) / 2
    digits = 0 if model.device.type == "cpu" else 1
    return (
        f"| {executor}: switching packs {max(0.0, cost):.{digits}f} ms; "
        f"copying the touched weights twice {found.of('copy'):.{digits}f} ms | | | | |"
    )


def _peft(model: Any, inputs: dict[str, Any]) -> list[str]:
    """Measure PEFT's mixed batches, whose choices are given and not routed."""
    import peft

    bare = _steps(model, inputs)
    base = in_turns({"prefill": lambda: _prefill(model, inputs), "decode": bare})
    lora = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEAR)
    wrapped = peft.get_peft_model(model, lora, adapter_name="p0")
    for name in ("p1", "p2"):
        wrapped.add_adapter(name, lora)
    wrapped.eval()
    names = ["__base__" if name is None else name for name in MIXED]
    digits = 0 if model.device.type == "cpu" else 1
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for name, tensor in wrapped.named_parameters():
            if "lora_" in name:
                tensor.data = torch.randn_like(tensor.float()).mul_(0.01).to(dtype)
        steps = _steps(wrapped, inputs, adapter_names=names)
        found = in_turns({"prefill": lambda: _prefill(wrapped, inputs, adapter_names=names), "decode": steps})
        cells = [f"{found.of('prefill'):.{digits}f}", f"{found.of('prefill') / base.of('prefill'):.2f}"]
        cells += [f"{found.of('decode') / STEPS:.1f}", f"{found.of('decode') / base.of('decode'):.2f}"]
        rows.append(f"| PEFT, {dtype} adapters: rows differ | {' | '.join(cells)} |")
    return rows


class Times(dict[str, list[float]]):
    """Milliseconds of each function in each turn."""

    def of(self, name: str) -> float:
        """Return a function's median."""
        return statistics.median(self[name])

    def ratio(self, name: str, other: str) -> float:
        """Return the median over the turns of what one function took for each millisecond of another."""
        return statistics.median(one / two for one, two in zip(self[name], self[other], strict=True))


def in_turns(functions: dict[str, Forward], turns: int = TURNS) -> Times:
    """Measure functions, run in turns after an unmeasured one: ratios in one turn know nothing of a machine's slow minutes."""
    times = Times({name: [] for name in functions})
    for turn in range(turns + 1):
        for name, function in functions.items():
            started = seconds()
            function()
            if turn:
                times[name].append(1000 * (seconds() - started))
    return times


def seconds() -> float:
    """Return the CPU time; where a GPU is used, the time at which it has done all that it was given."""
    if not torch.cuda.is_initialized():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
