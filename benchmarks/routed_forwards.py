"""The forwards that ``benchmarks/compose.py route`` measures: plain, routed by skillhub, and mixed by PEFT."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

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
}
MIXED = ["p0", None, "p1", "p2", "p0", "p1", None, "p2"]
ROWS, LENGTH, RANK, STEPS, TURNS = 8, 128, 16, 4, 7
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Forward = Callable[[], object]


def route_tables(work: Path) -> list[str]:
    """Return the tables of both sizes."""
    torch.set_num_threads(1)
    logging.disable()
    lines = [
        f"Batches of {ROWS} rows of {LENGTH} tokens over three packs (rank {RANK}, all linear layers) and the base, bf16, one thread; CPU "
        f"milliseconds, medians of {TURNS} turns. Decoding is one token for every row. The router runs the base up to a layer: ¼ of the depth "
        "is the deepest that a routing card may name, ⅙ the deepest that cards of the three skills of `benchmarks/routing.py` do.",
    ]
    for size, config in SIZES.items():
        lines += [
            "",
            f"**{size}**",
            "",
            "| | prefill ms | of the base | decode ms | of the base |",
            "|---|---|---|---|---|",
        ]
        lines += _rows(work / "routed" / size.replace(" ", ""), config)
    return [*lines, "", "Command: `python benchmarks/compose.py route`"]


def _rows(folder: Path, config: dict[str, Any]) -> list[str]:
    model = _model(folder, config)
    packs = [folder / f"p{number}" for number in range(3)]
    inputs = {"input_ids": torch.randint(3, 500, (ROWS, LENGTH)), "attention_mask": torch.ones(ROWS, LENGTH).long()}
    rows: list[str] = []
    for executor in ("factored", "grouped"):
        router = EarlyRouter(model)
        graft_routed(model, packs, router=router, executor=executor, trust_base=True)
        calls: dict[str, Callable[..., Any]] = {
            f"{executor}: rows agree": lambda run: run(pack_choices=["p1"] * ROWS),
            f"{executor}: rows differ": lambda run: run(pack_choices=MIXED),
            f"{executor}: rows differ, routing at ⅙ included": lambda run, router=router: router.at(6, run),
            f"{executor}: rows differ, routing at ¼ included": lambda run, router=router: router.at(4, run),
        }
        rows += _compare(model, inputs, calls)
        rows.append(_switching(model, inputs, executor))
        ungraft_routed(model)
    return rows + _peft(model, inputs)


class EarlyRouter:
    """Does what a card's router does, and then decides as the measurement wants."""

    def __init__(self, model: Any) -> None:
        self.layers = model.config.num_hidden_layers
        self.layer = self.layers // 4
        self.centres = torch.randn(3, model.config.hidden_size)

    def at(self, part: int, run: Callable[[], Any]) -> Any:
        """Run something while the router looks at the layer that is such a part of the depth."""
        self.layer = self.layers // part
        return run()

    def route(self, prefill: Prefill) -> list[str | None]:
        """Run the base up to the layer, pool and compare; then return the fixed choices."""
        states = early_states(prefill, self.layer).float().mean(1)
        (states @ self.centres.T).argmax(1)
        return list(MIXED)


def _model(folder: Path, config: dict[str, Any]) -> Any:
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
    return transformers.LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16).eval()


def _prefill(model: Any, inputs: dict[str, Any], **choices: Any) -> Any:
    with torch.inference_mode():
        return model(**inputs, use_cache=True, logits_to_keep=1, **choices)


def _steps(model: Any, inputs: dict[str, Any], **choices: Any) -> Forward:
    """Return a function that decodes some tokens from a cache which a prefill filled, and takes them back."""
    cache = _prefill(model, inputs, **choices).past_key_values

    def decode() -> None:
        with torch.inference_mode():
            for _ in range(STEPS):
                mask = torch.ones(ROWS, cache.get_seq_length() + 1).long()
                model(input_ids=inputs["input_ids"][:, :1], attention_mask=mask, past_key_values=cache)
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
    return [
        f"| {name} | {first[name]:.0f} | {first[name] / first['base']:.2f} | {then[name] / STEPS:.1f} | {then[name] / then['base']:.2f} |"
        for name in prefills
    ]


def _switching(model: Any, inputs: dict[str, Any], executor: str) -> str:
    """Measure what it costs that a batch agrees on another pack than the one before, beside copying the weights twice."""
    touched = [tensor for name, tensor in model.named_parameters() if name.endswith("_proj.weight")]
    copies = [tensor.detach().clone() for tensor in touched]

    def one(name: str) -> None:
        _prefill(model, inputs, pack_choices=[name] * ROWS)

    def copy() -> None:
        for _ in range(2):
            for tensor, kept in zip(touched, copies, strict=True):
                kept.copy_(tensor.detach())

    found = in_turns({"stay": lambda: (one("p1"), one("p1")), "switch": lambda: (one("p0"), one("p1")), "copy": copy})
    cost = max(0.0, (found["switch"] - found["stay"]) / 2)
    return f"| {executor}: switching packs {cost:.0f} ms; copying the touched weights twice {found['copy']:.0f} ms | | | | |"


def _peft(model: Any, inputs: dict[str, Any]) -> list[str]:
    """Measure PEFT's mixed batches, whose choices are given and not routed."""
    import peft

    base = in_turns({"base": lambda: _prefill(model, inputs)})["base"]
    lora = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEAR)
    wrapped = peft.get_peft_model(model, lora, adapter_name="p0")
    for name in ("p1", "p2"):
        wrapped.add_adapter(name, lora)
    wrapped.eval()
    names = ["__base__" if name is None else name for name in MIXED]
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for name, tensor in wrapped.named_parameters():
            if "lora_" in name:
                tensor.data = torch.randn_like(tensor.float()).mul_(0.01).to(dtype)
        found = in_turns({"mixed": lambda: _prefill(wrapped, inputs, adapter_names=names)})["mixed"]
        rows.append(f"| PEFT, {dtype} adapters: rows differ | {found:.0f} | {found / base:.2f} | - | - |")
    return rows


def in_turns(functions: dict[str, Forward]) -> dict[str, float]:
    """Return the median CPU milliseconds of each function, run in turns after an unmeasured one."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(TURNS + 1):
        for name, function in functions.items():
            started = time.process_time()
            function()
            if turn:
                times[name].append(time.process_time() - started)
    return {name: 1000 * statistics.median(some) for name, some in times.items()}
