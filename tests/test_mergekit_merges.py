from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

from skillhub.compose.mergefiles import fuse_file
from skillhub.environments import Environment, Receipt, write_project
from skillhub.errors import SkillhubError, UsageError, WrongBaseError
from skillhub.packs import write_manifest
from skillhub.projects import Project
from tests.support.commands import Shell
from tests.support.merge_models import LAYERS, LETTERS, SPECIAL, write_models
from tests.support.peft_adapters import make_adapter, merged_model
from tests.support.tiny_models import KINDS, build_pack, load_model, save_model, tune

GOLDEN = Path(__file__).parent / "golden" / "mergekit"
TOLERANCE = 1e-6
"""Of fp32, relative to the largest element: both sum in fp32, in another order."""
ONE = "merge_method: linear\nmodels: [{model: llama/one, parameters: {weight: 1}}]\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mergekit")
    write_models(root)
    return root


@pytest.fixture
def here(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(models)
    return models


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def run(folder: Path, text: str, **options: Any) -> Path:
    path = folder / "merge.yml"
    path.write_text(text, encoding="utf-8")
    return fuse_file(path, folder / "out", **options)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name
    tolerance = TOLERANCE if ours.dtype == torch.float32 else 2**-8
    largest = float(theirs.abs().max())
    assert float((ours.double() - theirs.double()).abs().max()) <= tolerance * max(largest, 1e-3), name


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.yml")), ids=lambda path: path.stem)
def test_a_file_gives_what_mergekit_gives_and_it_loads(path: Path, here: Path, tmp_path: Path) -> None:
    out = fuse_file(path, tmp_path / "out")
    with safe_open(path.with_suffix(".safetensors"), "pt") as golden:
        facts = json.loads(golden.metadata()["facts"])
    ours, theirs = tensors_of(out), load_file(path.with_suffix(".safetensors"))
    assert set(ours) == set(theirs)
    mine: dict[str, int] = AutoTokenizer.from_pretrained(out).get_vocab() if "tokens" in facts else {}
    if mine:
        assert set(mine) == set(facts["tokens"])
    for name, tensor in ours.items():
        if mine and ("embed_tokens" in name or "lm_head" in name):
            # mergekit numbers added tokens at random: rows are compared by what they stand for.
            order = sorted(mine)
            rows, own = [mine[token] for token in order], [facts["tokens"][token] for token in order]
            assert_close(tensor[rows], theirs[name][own], name)
            assert_close(tensor[len(mine) :], theirs[name][len(mine) :], name) if len(tensor) > len(mine) else None
        else:
            assert_close(tensor, theirs[name], name)
    config = json.loads((out / "config.json").read_text())
    assert {key: config[key] for key in facts if key != "tokens"} == {k: v for k, v in facts.items() if k != "tokens"}
    assert_loads(out)


def assert_loads(out: Path) -> None:
    model = load_model(out)
    state = model.state_dict()
    for name, tensor in tensors_of(out).items():
        assert torch.equal(state[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) <= model.config.vocab_size
    assert torch.isfinite(model(**tokenizer("a b c", return_tensors="pt", return_token_type_ids=False)).logits).all()


def test_new_tokens_are_numbered_in_a_fixed_order(here: Path, tmp_path: Path) -> None:
    out = fuse_file(GOLDEN / "vocabularies_union.yml", tmp_path / "out")
    vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(out).get_vocab()
    added = ["u", "v", "<|im_start|>", "w", "y"]
    assert sorted(vocabulary, key=lambda token: vocabulary[token]) == [*SPECIAL, *LETTERS, *added]
    assert AutoTokenizer.from_pretrained(out)("a<|im_start|> w").input_ids == [
        4,
        vocabulary["<|im_start|>"],
        vocabulary["w"],
    ]


def test_shards_and_one_file_hold_the_same(here: Path, tmp_path: Path) -> None:
    whole = fuse_file(GOLDEN / "ties.yml", tmp_path / "whole")
    cut = fuse_file(GOLDEN / "ties.yml", tmp_path / "cut", shard_bytes=3000)
    one, other = tensors_of(whole), tensors_of(cut)
    assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3 and set(index["weight_map"]) == set(one)
    load_model(cut)


def test_random_masks_are_the_same_for_one_seed_and_others_for_another(here: Path, tmp_path: Path) -> None:
    text = (
        "merge_method: dare_ties\nbase_model: llama/base\nmodels:\n  - {model: llama/one, parameters: {weight: 1, density: 0.5}}\n"
        "  - {model: llama/two, parameters: {weight: 1, density: 0.5}}\n"
    )
    path = tmp_path / "dare.yml"
    path.write_text(text)
    first, again, other = (
        tensors_of(fuse_file(path, tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    path.write_text(text.replace("dare_ties", "dare_linear"))
    base, merged = tensors_of(here / "llama" / "base"), tensors_of(fuse_file(path, tmp_path / "d"))
    deltas = [tensors_of(here / "llama" / name) for name in ("one", "two")]
    for name in base:
        if base[name].numel() >= 64:
            kept = [
                (merged[name] - base[name]).abs().sum(),
                sum((one[name] - base[name]).abs().sum() for one in deltas),
            ]
            assert (
                0.5 < float(kept[0] / kept[1]) <= 1.01
            )  # the sums of magnitudes stay; elements of two signs take from them


# --- documents --------------------------------------------------------------------------------------------------------------------

STEPS = """\
name: first
merge_method: linear
models: [{model: llama/one, parameters: {weight: 1}}, {model: llama/two, parameters: {weight: 1}}]
---
merge_method: slerp
base_model: first
models: [{model: llama/three}]
parameters: {t: 0.25}
"""


def test_a_document_uses_the_result_of_another(here: Path, tmp_path: Path) -> None:
    out = run(tmp_path, STEPS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.yml", "out"]
    first, second = STEPS.split("---\n")
    for name, text in (("step", first), ("last", second.replace("first", str(tmp_path / "step" / "out")))):
        (tmp_path / name).mkdir()
        run(tmp_path / name, text)
    expected = tensors_of(tmp_path / "last" / "out")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors_of(out).items())


def test_documents_may_stand_in_any_order(here: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    first, second = STEPS.split("---\n")
    one, other = run(tmp_path / "one", STEPS), run(tmp_path / "other", f"{second}---\n{first}")
    assert all(torch.equal(tensor, tensors_of(other)[name]) for name, tensor in tensors_of(one).items())


def test_where_all_documents_have_names_each_result_is_kept(here: Path, tmp_path: Path) -> None:
    out = run(tmp_path, STEPS.replace("---\n", "---\nname: second\n"))
    assert sorted(path.name for path in out.iterdir()) == ["first", "second"]
    load_model(out / "first")
    load_model(out / "second")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STEPS.replace("---\n", "---\nname: first\n"), "called 'first' too"),
        (STEPS.replace("name: first\n", ""), "no name either"),
        (STEPS.replace("model: llama/one", "model: last").replace("---\n", "---\nname: last\n"), "in a circle"),
    ],
)
def test_documents_that_do_not_go_together_are_refused(text: str, message: str, here: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        run(tmp_path, text)
    assert not (tmp_path / "out").exists()


# --- packs and adapters -------------------------------------------------------------------------------------------------------------


def test_a_pack_stands_for_its_base_with_its_delta(here: Path, tmp_path: Path) -> None:
    build_pack(here / "llama" / "one", here / "llama" / "base", tmp_path / "pack")
    for text in (
        "merge_method: ties\nbase_model: llama/base\nmodels:\n  - {model: MODEL, parameters: {weight: 0.5, density: 0.4}}\n"
        "  - {model: llama/two, parameters: {weight: 0.7, density: 0.6}}\n",
        "merge_method: linear\nmodels:\n  - {model: MODEL, parameters: {weight: 0.5}}\n  - {model: llama/base, parameters: {weight: 1}}\n",
        "merge_method: passthrough\nslices:\n  - sources: [{model: llama/base+PACK, layer_range: [0, 2]}]\n",
    ):
        results = []
        for name, model in (("pack", str(tmp_path / "pack")), ("whole", "llama/one")):
            (tmp_path / "run").mkdir()
            both = text.replace("llama/base+PACK", f"llama/base+{model}" if name == "pack" else model)
            results.append(tensors_of(run(tmp_path / "run", both.replace("MODEL", model))))
            (tmp_path / "run").rename(tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}")
        for name, tensor in results[0].items():
            assert torch.allclose(tensor, results[1][name], rtol=0, atol=1e-6), name


def test_an_installed_pack_is_a_model_too(here: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "project")
    folder = environment.packs_folder / "acme" / "maths"
    pack = build_pack(here / "llama" / "one", here / "llama" / "base", folder, name="maths")
    receipt = Receipt(
        schema=0,
        name="acme/maths",
        registry="local",
        repository="acme/maths",
        version="1.0.0",
        manifest=pack.digest,
        fingerprint=pack.manifest.variants[0].base.fingerprint,
        files=[],
    )
    (folder / "receipt.json").write_bytes(receipt.to_bytes())
    write_project(environment, Project(requirements=["acme/maths"]))
    text = "merge_method: linear\nmodels: [{model: acme/maths}, {model: llama/base}]\nparameters: {weight: 1}\n"
    merged = tensors_of(run(tmp_path, text, environment=environment))
    one, base = tensors_of(here / "llama" / "one"), tensors_of(here / "llama" / "base")
    assert all(torch.allclose(merged[name], (one[name] + base[name]) / 2, atol=1e-6) for name in merged)
    with pytest.raises(SkillhubError) as caught:
        run(tmp_path / "project", text.replace("acme/maths", "./no/such"), environment=environment)
    assert "There is no base model in ./no/such" in caught.value.message and "As a pack:" in caught.value.message


def test_a_pack_whose_base_is_not_there_says_so(here: Path, tmp_path: Path) -> None:
    pack = build_pack(tune(save_model("llama", tmp_path / "a"), tmp_path / "b"), tmp_path / "a", tmp_path / "pack")
    with pytest.raises(WrongBaseError):
        run(tmp_path, ONE.replace("llama/one", f"llama/base+{pack.folder}"))
    (variant,) = pack.manifest.variants
    nameless = structs.replace(variant, base=structs.replace(variant.base, repo=None))
    write_manifest(pack.folder, structs.replace(pack.manifest, variants=[nameless]))
    with pytest.raises(WrongBaseError) as caught:
        run(tmp_path, ONE.replace("llama/one", str(pack.folder)))
    assert caught.value.message.startswith("merge.yml, line 2, models[0].model: ") and "base+pack" in caught.value.hint


def test_an_adapter_after_a_plus_sign_is_added(here: Path, tmp_path: Path) -> None:
    adapter = make_adapter(here / "llama" / "base", tmp_path / "lora", target_modules=["q_proj", "down_proj"])
    out = run(tmp_path, ONE.replace("llama/one", f"llama/base+{adapter}"))
    expected = merged_model(here / "llama" / "base", adapter).state_dict()
    for name, tensor in tensors_of(out).items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-5), name


# --- configs, templates, cards --------------------------------------------------------------------------------------------------------


def test_what_a_config_lists_for_every_layer_follows_the_layers(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    for number, name in enumerate(("a", "b")):
        layers = kinds if name == "a" else kinds[::-1]
        save_model(
            "qwen2",
            tmp_path / name,
            seed=number,
            num_hidden_layers=4,
            layer_types=layers,
            use_sliding_window=True,
            sliding_window=8,
        )
    out = run(
        tmp_path,
        f"merge_method: passthrough\nslices:\n  - sources: [{{model: {tmp_path / 'a'}, layer_range: [0, 2]}}]\n"
        f"  - sources: [{{model: {tmp_path / 'b'}, layer_range: [0, 4]}}]\n",
    )
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == 6 and config["layer_types"] == kinds[:2] + kinds[::-1]
    assert load_model(out).config.num_hidden_layers == 6


def test_a_head_that_one_model_has_apart_is_written_and_no_longer_tied(here: Path, tmp_path: Path) -> None:
    out = run(
        tmp_path,
        "merge_method: linear\nmodels:\n  - {model: tied/base, parameters: {weight: 1}}\n"
        "  - {model: llama/one, parameters: {weight: 1}}\n",
    )
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    one, tied = tensors_of(here / "llama" / "one"), tensors_of(here / "tied" / "base")
    expected = (one["lm_head.weight"] + tied["model.embed_tokens.weight"]) / 2
    assert torch.allclose(tensors_of(out)["lm_head.weight"], expected, atol=1e-6)
    assert torch.equal(load_model(out).lm_head.weight, tensors_of(out)["lm_head.weight"])


def test_chat_templates_are_written_as_asked(here: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}]
    for name, asked, expected in (
        ("chatml", "chatml", "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"),
        ("own", "'{{ messages[0].content }}!'", "a!"),
    ):
        (tmp_path / name).mkdir()
        out = run(tmp_path / name, f"{ONE}chat_template: {asked}\n")
        tokenizer = AutoTokenizer.from_pretrained(out)
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
    text = f"merge_method: linear\nmodels: [{{model: {tmp_path / 'own' / 'out'}, parameters: {{weight: 1}}}}]\nchat_template: auto\n"
    (tmp_path / "auto").mkdir()
    out = run(tmp_path / "auto", text)
    assert AutoTokenizer.from_pretrained(out).apply_chat_template(messages, tokenize=False) == "a!"
    for asked in ("auto", "llama3"):
        with pytest.raises(UsageError, match="chat_template"):
            run(tmp_path, f"{ONE}chat_template: {asked}\n")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "asked", "message"),
    [
        ("tokenizer_config.json", b"[]", "chat_template: auto", "is not a JSON object"),
        ("tokenizer_config.json", b"{", "chat_template: auto", "is not a JSON object"),
        (
            "tokenizer_config.json",
            b'{"chat_template": ["a", {"name": 5}]}',
            "chat_template: auto",
            "has a chat template",
        ),
        ("chat_template.jinja", b"\xff\xfe", "chat_template: auto", "is not UTF-8 text"),
        ("generation_config.json", b"[]", "tokenizer_source: base", "is not a JSON object"),
        ("tokenizer.json", b"{}", "tokenizer_source: base", "has no tokenizer"),
        (
            "tokenizer_config.json",
            b'{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}',
            "tokenizer_source: base",
            "has no tokenizer",
        ),
    ],
)
def test_a_model_whose_files_are_damaged_is_told_and_its_code_never_run(
    name: str, content: bytes, asked: str, message: str, here: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(here / "llama" / "one", model)
    if name == "tokenizer_config.json":  # else it would be told of by the file alone
        (model / "tokenizer.json").unlink()
    (model / name).write_bytes(content)
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(SkillhubError, match=message):
        run(tmp_path, f"{ONE.replace('llama/one', str(model))}{asked}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.yml", "model"]


def test_the_card_holds_the_file_and_names_the_models(here: Path, tmp_path: Path) -> None:
    build_pack(here / "llama" / "one", here / "llama" / "base", tmp_path / "pack", name="maths")
    out = run(
        tmp_path,
        f"# ``` a fence\nmerge_method: linear\nmodels:\n  - {{model: llama/base+{tmp_path / 'pack'}, parameters: {{weight: 1}}}}\n",
    )
    card = (out / "README.md").read_text()
    assert "````yaml\n" in card and "merge_method: linear" in card and "# ``` a fence" in card
    assert "| base | - | maths 1.0.0 `" in card


# --- what cannot be merged ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "merge_method: passthrough\nslices: [{sources: [{model: llama/one, layer_range: [2, 6]}]}]\n",
            rf"layer_range: llama/one has {LAYERS} layers, not 6",
            "4 or before",
        ),
        ("merge_method: linear\nmodels: [{model: llama/one}]\n", "nothing says what weight is", "weight"),
        (
            "merge_method: linear\nmodels: [{model: llama/one, parameters: {weight: [{filter: mlp, value: 1}]}}]\n",
            r"models\[0\]: nothing says what weight is for model.embed_tokens.weight",
            "weight",
        ),
        (
            "merge_method: linear\nmodels: [{model: llama/one}, {model: gpt2/one}]\nparameters: {weight: 1}\n",
            r"models\[1\].model: gpt2/one is a GPT2LMHeadModel",
            "one architecture",
        ),
        (
            "merge_method: linear\nmodels: [{model: llama/one}, {model: llama-vocabularies/added}]\nparameters: {weight: 1}\n",
            r"embed_tokens.weight is \[26, 8\] in llama/one and \[28, 8\]",
            "tokenizer",
        ),
        (
            "merge_method: linear\nmodels: [{model: llama/one, parameters: {weight: 1}}, {model: llama/two, parameters: {weight: -1}}]\n",
            "add up to 0",
            "normalize: false",
        ),
        (f"{ONE}tokenizer: {{tokens: {{x: {{source: llama/two}}}}}}\n", "does not take part", "merged there"),
        (
            f"{ONE}tokenizer: {{tokens: {{x: {{source: {{kind: model_token, model: llama/one, token: zz}}}}}}}}\n",
            "has no token 'zz'",
            "Name a token",
        ),
        (ONE.replace("llama/one", "./llama/none"), "line 2, models", "folder"),
        (
            "merge_method: breadcrumbs\nbase_model: llama/base\nmodels:\n  - {model: llama/one, parameters: {weight: 1, gamma: 0.1}}\n"
            "  - {model: llama/two, parameters: {weight: 1, gamma: 0.2}}\n",
            "gamma differs between the models",
            "same",
        ),
        (
            "merge_method: della\nbase_model: llama/base\nmodels: [{model: llama/one, parameters: {weight: 1, density: 0.9}}]\n",
            "density 0.9 ± epsilon 0.15 is not within 0 and 1",
            "smaller epsilon",
        ),
    ],
)
def test_what_cannot_be_merged_is_told_before_anything_is_written(
    text: str, message: str, hint: str, here: Path, tmp_path: Path
) -> None:
    with pytest.raises(SkillhubError) as caught:
        run(tmp_path, text)
    assert re.search(message, caught.value.message) and hint in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["merge.yml"]


def test_a_merge_that_fails_half_way_leaves_nothing(here: Path, tmp_path: Path) -> None:
    def stop(what: str, done: int, count: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, STEPS, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["merge.yml"]


def test_a_full_folder_is_not_written_to(here: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UsageError, match="not an empty folder"):
        run(tmp_path, ONE)


# --- architectures --------------------------------------------------------------------------------------------------------------------

ARCHITECTURES = ["llama", "tied", "gpt2", "bert", "mixtral", *KINDS]
STACKED = [kind for kind in ARCHITECTURES if kind not in ("t5", "t5_untied", "gemma_images")]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → folder with a base and two fine-tunes, ``one`` and ``two``."""
    root = tmp_path_factory.mktemp("architectures")

    @functools.cache
    def make(kind: str) -> Path:
        base = save_model(kind, root / kind / "base", dtype=torch.float32)
        for number, name in enumerate(("one", "two"), start=1):
            tune(base, root / kind / name, seed=number, size=0.02)
        return root / kind

    return make


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_whole_models_of_every_architecture_are_merged(kind: str, tuned: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tuned(kind)
    out = run(
        tmp_path,
        f"merge_method: linear\nmodels:\n  - {{model: {folder / 'one'}, parameters: {{weight: 0.25}}}}\n"
        f"  - {{model: {folder / 'two'}, parameters: {{weight: 0.75}}}}\n",
    )
    one, two, merged = (dict(load_model(path).named_parameters()) for path in (folder / "one", folder / "two", out))
    for name, tensor in merged.items():
        assert torch.allclose(tensor, 0.25 * one[name] + 0.75 * two[name], atol=1e-6), name


@pytest.mark.parametrize("kind", STACKED)
def test_layers_of_every_architecture_with_one_stack_are_repeated(
    kind: str, tuned: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tuned(kind)
    out = run(
        tmp_path,
        f"merge_method: passthrough\nslices:\n  - sources: [{{model: {folder / 'one'}, layer_range: [0, 2]}}]\n"
        f"  - sources: [{{model: {folder / 'two'}, layer_range: [1, 2]}}]\n",
    )
    before, merged = load_model(folder / "two").state_dict(), load_model(out).state_dict()
    last = {name: tensor for name, tensor in merged.items() if re.search(r"\.2\.", name) and "experts.2." not in name}
    assert last
    for name, tensor in last.items():
        assert torch.equal(tensor, before[re.sub(r"\.2\.", ".1.", name, count=1)]), name


def test_the_parts_of_an_encoder_and_decoder_have_weights_of_their_own(
    tuned: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tuned("t5")
    models = f"[{{model: {folder / 'one'}}}, {{model: {folder / 'two'}, parameters: {{weight: WEIGHT}}}}]"
    parts = {"encoder": 1.0, "decoder": 3.0, "shared": 0.0}
    text = "merge_method: linear\nmodules:\n" + "".join(
        f"  {name}:\n    slices:\n      - sources:\n"
        f"          - {{model: {folder / 'one'}, layer_range: [0, 2], parameters: {{weight: 1}}}}\n"
        f"          - {{model: {folder / 'two'}, layer_range: [0, 2], parameters: {{weight: {weight}}}}}\n"
        if name != "shared"
        else f"  {name}: {{models: {models.replace('WEIGHT', str(weight))}, parameters: {{weight: 1}}}}\n"
        for name, weight in parts.items()
    )
    out = run(tmp_path, text)
    one, two, merged = (tensors_of(path) for path in (folder / "one", folder / "two", out))
    for name, tensor in merged.items():
        weight = parts.get(name.partition(".")[0], parts["shared"])
        assert torch.allclose(tensor, (one[name] + weight * two[name]) / (1 + weight), atol=1e-6), name
    with pytest.raises(UsageError) as caught:
        (tmp_path / "less").mkdir()
        run(tmp_path / "less", re.sub(r"  shared:.*\n", "", text))
    assert "leave out" in caught.value.message


# --- the command ----------------------------------------------------------------------------------------------------------------------


def test_the_command_plans_a_file_and_runs_it(models: Path, tmp_path: Path) -> None:
    path, shell = tmp_path / "merge.yml", Shell(models)
    path.write_text(STEPS)
    documents = shell.json("fuse", path, "--plan")["documents"]
    assert [(one["name"], one["tensors"]) for one in documents] == [("first", 39), (None, None)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["merge.yml"]
    assert shell.json("fuse", path, "-o", tmp_path / "out", "--quiet")["checkpoints"] == [str(tmp_path / "out")]
    load_model(tmp_path / "out")


def test_the_command_refuses_options_that_the_file_decides(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "merge.yml"
    path.write_text(ONE)
    done = Shell(models).run("fuse", path, "-o", tmp_path / "out", "--method", "ties")
    assert done.returncode == 2 and "--method does not go with a configuration file" in done.stderr
    assert not (tmp_path / "out").exists()


def test_several_processes_write_the_bytes_that_one_writes(here: Path, tmp_path: Path) -> None:
    path = tmp_path / "merge.yml"
    path.write_text(STEPS)
    alone = fuse_file(path, tmp_path / "alone", shard_bytes=4000)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "skillhub"]
    done = subprocess.run(
        [*command, "fuse", str(path), "-o", str(tmp_path / "together"), "--shard-size", "4KB"],
        env={**Shell(here).variables, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.count("Wrote") == 1, done.stderr
    assert {path.name: path.read_bytes() for path in alone.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "together").iterdir()
    }
