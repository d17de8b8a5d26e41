from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillhub.errors import NotFoundError, SkillhubError, UnsafeContentError, UsageError
from skillhub.interop.mergekit.amounts import Rule
from skillhub.interop.mergekit.configurations import Configuration, read_configurations
from skillhub.interop.mergekit.nodes import FILE_LIMIT

EXAMPLES = {
    "weights of three models": "merge_method: linear\nmodels: [{model: a/x, parameters: {weight: 1.0}}, "
    "{model: b/y, parameters: {weight: 0.3}}]\ndtype: float16\n",
    "gradients and filters of slerp": "slices:\n  - sources:\n      - {model: a/x, layer_range: [0, 40]}\n"
    "      - {model: b/y, layer_range: [0, 40]}\nmerge_method: slerp\nbase_model: a/x\nparameters:\n  t:\n"
    "    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}\n    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}\n"
    "    - {value: 0.5}\ndtype: float16\n",
    "two models on top of each other": "slices:\n  - sources: [{model: a/x, layer_range: [0, 24]}]\n"
    "  - sources: [{model: b/y, layer_range: [20, 40]}]\nmerge_method: passthrough\ndtype: float16\n",
    "a model cut short": "slices:\n- sources:\n  - {model: gpt2, layer_range: [0, 8]}\nmerge_method: passthrough\n",
    "ties with gradients of density": "models:\n  - model: a/x\n    parameters: {density: [1, 0.7, 0.1], weight: 1.0}\n"
    "  - model: b/y\n    parameters:\n      density: 0.33\n      weight: [{filter: mlp, value: 0.5}, {value: 0}]\n"
    "merge_method: ties\nbase_model: c/z\nparameters: {normalize: true, int8_mask: true}\ndtype: float16\n",
    "ties without normalizing": "models:\n  - {model: a/x, parameters: {density: 0.5, weight: 0.5}}\nmerge_method: ties\n"
    "base_model: c/z\nparameters: {normalize: false, int8_mask: true}\ndtype: float16\n",
    "two models that are fused by importance": "models: [{model: a}, {model: b}]\nmerge_method: arcee_fusion\n"
    "base_model: a\ndtype: bfloat16\n",
    "dare": "models:\n  - {model: a, parameters: {density: 0.53, weight: 0.4}}\n  - {model: base}\nmerge_method: dare_ties\n"
    "base_model: base\nparameters: {int8_mask: true}\ndtype: bfloat16\n",
    "dare without election": "models: [{model: a, parameters: {density: 0.5, weight: 0.4}}]\nmerge_method: dare_linear\n"
    "base_model: base\nparameters: {rescale: false}\n",
    "stock": "models: [{model: a}, {model: b}, {model: c}]\nmerge_method: model_stock\nbase_model: base\n",
    "breadcrumbs": "models: [{model: a, parameters: {weight: 1, density: 0.9, gamma: 0.01}}]\nmerge_method: breadcrumbs\n"
    "base_model: base\n",
    "breadcrumbs with election": "models: [{model: a, parameters: {weight: 1, gamma: 0.05}}]\n"
    "merge_method: breadcrumbs_ties\nbase_model: base\n",
    "della": "models: [{model: a, parameters: {weight: 1, density: 0.6, epsilon: 0.2}}]\nmerge_method: della\n"
    "base_model: base\nparameters: {lambda: 1.1}\n",
    "della without election": "models: [{model: a, parameters: {weight: 1, density: 0.6}}]\n"
    "merge_method: della_linear\nbase_model: base\n",
    "sce": "models: [{model: a}, {model: b}]\nmerge_method: sce\nbase_model: base\nparameters: {select_topk: 0.1}\n",
    "nuslerp": "models: [{model: a, parameters: {weight: 0.4}}, {model: b, parameters: {weight: 0.6}}]\n"
    "merge_method: nuslerp\nparameters: {nuslerp_flatten: false}\n",
    "multislerp": "models: [{model: a, parameters: {weight: 0.4}}, {model: b, parameters: {weight: 0.6}}]\n"
    "merge_method: multislerp\nparameters: {normalize_weights: false}\n",
    "karcher": "models: [{model: a}, {model: b}, {model: c}]\nmerge_method: karcher\nparameters: {max_iter: 20, tol: 1e-6}\n",
    "nearswap": "models: [{model: b}]\nmerge_method: nearswap\nbase_model: a\nparameters: {t: 0.001}\n",
    "ram": "models: [{model: a}, {model: b}]\nmerge_method: ramplus_tl\nbase_model: base\nparameters: {r: 0.2}\n",
    "an adapter and a revision": "models: [{model: org/base@main+./lora, parameters: {weight: 1}}]\nmerge_method: linear\n",
    "vocabularies together": "models: [{model: a, parameters: {weight: 1}}]\nmerge_method: linear\ntokenizer_source: union\n",
    "tokens by rule": "models: [{model: a, parameters: {weight: 1}}]\nmerge_method: linear\ntokenizer:\n  source: union\n"
    "  tokens:\n    <|im_start|>: {source: a, force: true}\n    <|x|>: {source: {kind: model_token, model: a, token: y}}\n"
    "    <|y|>: {source: {kind: model_token, model: a, token_id: 7}}\n    <|z|>: {source: {kind: zero}}\n"
    "  pad_to_multiple_of: 64\nchat_template: auto\n",
    "parts of a model": "modules:\n  encoder: {models: [{model: a}, {model: b}]}\n  decoder: {models: [{model: a}, {model: b}]}\n"
    "  shared: {models: [{model: a}, {model: b}], parameters: {weight: 0.1}}\nmerge_method: linear\nparameters: {weight: 0.5}\n",
    "anchors": "models:\n  - &first {model: a, parameters: &half {weight: 0.5}}\n  - {model: b, parameters: *half}\n"
    "  - {<<: *first, model: c}\nmerge_method: linear\n",
    "documents that use each other": "name: first\nmerge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n---\n"
    "merge_method: slerp\nbase_model: first\nmodels: [{model: b}]\nparameters: {t: 0.5}\n",
}

LINEAR = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"

REFUSED = {
    "an old word for filters": (
        "models: [{model: a, parameters: {weight: [{pattern: mlp, value: 1}]}}]\nmerge_method: linear\n",
        "line 1, models[0].parameters.weight[0].pattern",
        "write 'filter'",
    ),
    "a folder for the result": (LINEAR + "out_path: ./x\n", "line 3, out_path", "after -o"),
    "a method that went away": ("merge_method: ranked_ties\nmodels: [{model: a}]\n", "line 1, merge_method", "ties"),
    "another fork's method": (
        "merge_method: encoder_decoder_weighted\nmodels: [{model: a, parameters: {encoder_weight: 1}}]\n",
        "line 1, merge_method",
        "Use one of",
    ),
    "mixtures of experts": ("base_model: a\nexperts: [{source_model: b}]\n", "line 2, experts", "mergekit-moe"),
    "evolution": ("genome: {models: [a]}\ntasks: []\n", "line 1, genome", "mergekit-evolve"),
    "a key with a slip": (LINEAR + "dtyp: float16\n", "line 3, dtyp", "'dtype'"),
    "a parameter of another method": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1, density: 0.5}}]\n",
        "models[0].parameters.density",
        "weight, normalize",
    ),
    "a parameter that does nothing": (
        "merge_method: task_arithmetic\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1, density: 0.5}}]\n",
        "models[0].parameters.density",
        "ties",
    ),
    "a key that does nothing": (
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1]}], residual_weight: 0.1}]\n",
        "slices[0].residual_weight",
        "remove it",
    ),
    "a range that is none": (
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [4, 2]}]}]\n",
        "line 2, slices[0].sources[0].layer_range",
        "[0, 16]",
    ),
    "ranges of two lengths": (
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]}]\n",
        "slices[0].sources",
        "one length",
    ),
    "no range": ("merge_method: linear\nslices: [{sources: [{model: a}]}]\n", "slices[0].sources[0]", "[0, 16]"),
    "a range for a whole model": (
        "merge_method: linear\nmodels: [{model: a, layer_range: [0, 2]}]\n",
        "models[0].layer_range",
        "'slices'",
    ),
    "two ways at once": (LINEAR + "slices: []\n", "models and slices", "one of the three"),
    "no model": ("merge_method: linear\n", "none of them", "one of the three"),
    "no method": ("models: [{model: a}]\n", "no merge_method", "linear"),
    "no base": ("merge_method: ties\nmodels: [{model: a}]\n", "models", "tuned from"),
    "a base that is not in the slice": (
        "merge_method: slerp\nbase_model: c\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]\n",
        "slices[0]",
        "Add it",
    ),
    "too many models": (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}, {model: c}]\n",
        "takes 1 models beside the base, not 2",
        "number",
    ),
    "a model twice": ("merge_method: linear\nmodels: [{model: a}, {model: a}]\n", "models[1].model", "once"),
    "a dtype that is none": (LINEAR + "dtype: int8\n", "line 3, dtype", "bfloat16"),
    "a text for a number": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: heavy}}]\n",
        "models[0].parameters.weight",
        "Write one",
    ),
    "a number out of range": (
        "merge_method: ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1, density: 1.5}}]\n",
        "density: 1.5 is not a number from 0 to 1",
        "Write one",
    ),
    "not a number": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: .nan}}]\n",
        "models[0].parameters.weight",
        "Write one",
    ),
    "a rule after the last": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: [{value: 1}, {filter: mlp, value: 2}]}}]\n",
        "models[0].parameters.weight[1]",
        "last",
    ),
    "two adapters": ("merge_method: linear\nmodels: [{model: a+b+c}]\n", "models[0].model", "Name one"),
    "an adapter's revision": ("merge_method: linear\nmodels: [{model: a+b@v1}]\n", "models[0].model", "peft:b@v1"),
    "another architecture": (
        "merge_method: linear\nmodels: [{model: {model: a, override_architecture: B}}]\n",
        "models[0].model.override_architecture",
        "Remove it",
    ),
    "two tokenizers": (LINEAR + "tokenizer: {source: base}\ntokenizer_source: union\n", "tokenizer", "one of the two"),
    "half a rule for a token": (
        LINEAR + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}\n",
        "tokenizer.tokens.x.source",
        "Write both",
    ),
    "a key twice": (LINEAR + "dtype: float16\ndtype: float32\n", "line 4, dtype", "once"),
    "a date": (LINEAR + "name: 2024-01-01\n", "line 3, name", "quotes"),
    "no YAML": ("merge_method: [linear\n", "is not YAML", "Correct"),
    "a list": ("- linear\n", "must be a mapping", "key: value"),
    "nothing": ("# nothing\n", "empty", "Write"),
}


def read(folder: Path, text: str) -> list[Configuration]:
    path = folder / "merge.yml"
    path.write_text(text, encoding="utf-8")
    return read_configurations(path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_like_mergekits_examples_is_read(name: str, tmp_path: Path) -> None:
    documents = read(tmp_path, EXAMPLES[name])
    assert len(documents) == EXAMPLES[name].count("---") + 1
    assert all(document.models and document.method for document in documents)
    assert "".join(document.text for document in documents).replace("---\n", "") == EXAMPLES[name].replace("---\n", "")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_or_not_supported_is_told_with_its_place(name: str, tmp_path: Path) -> None:
    text, where, remedy = REFUSED[name]
    with pytest.raises(SkillhubError) as caught:
        read(tmp_path, text)
    error = caught.value
    assert error.message.startswith("merge.yml") and where in error.message, error.message
    assert remedy in error.hint, error.hint


def test_an_error_in_the_second_document_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"merge.yml, document 2, line 5, models\[0\]\.weight"):
        read(tmp_path, LINEAR + "---\nmerge_method: linear\nmodels: [{model: a, weight: 1}]\n")


def test_whatever_key_is_added_anywhere_it_is_refused(tmp_path: Path) -> None:
    text = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1}\n"
    for place in ("", "    ", "      "):
        with pytest.raises(UsageError, match="is not supported here"):
            read(
                tmp_path,
                text.replace("    parameters", "    model_: x\n    parameters") if place else text + "extra: 1\n",
            )


def test_levels_and_values_are_read_as_they_are_meant(tmp_path: Path) -> None:
    (document,) = read(tmp_path, EXAMPLES["gradients and filters of slerp"])
    (module,) = document.modules.values()
    (part,) = module.slices
    assert [(source.model.path, source.layers) for source in part.sources] == [("a/x", (0, 40)), ("b/y", (0, 40))]
    setting = document.settings["t"]
    assert setting.at("model.layers.0.self_attn.q_proj.weight", 0.0) == 0
    assert setting.at("model.layers.0.self_attn.q_proj.weight", 0.125) == pytest.approx(0.25)
    assert setting.at("model.layers.9.mlp.up_proj.weight", 1.0) == 0
    assert setting.at("model.norm.weight", 0.7) == 0.5
    assert document.dtype == "F16" and document.base is not None and document.base.path == "a/x"


def test_a_base_that_is_not_among_the_models_takes_part_all_the_same(tmp_path: Path) -> None:
    (document,) = read(tmp_path, LINEAR + "base_model: b\n")
    (module,) = document.modules.values()
    assert [source.model.path for source in module.slices[0].sources] == ["a", "b"]
    assert [model.path for model in document.models] == ["b", "a"]


def test_anchors_and_merged_mappings_are_followed(tmp_path: Path) -> None:
    (document,) = read(tmp_path, EXAMPLES["anchors"])
    (module,) = document.modules.values()
    named = [(source.model.path, source.settings["weight"].at("", 0)) for source in module.slices[0].sources]
    assert named == [("a", 0.5), ("b", 0.5), ("c", 0.5)]


def test_numbers_may_be_written_as_yaml_takes_them_for_texts(tmp_path: Path) -> None:
    (document,) = read(tmp_path, EXAMPLES["karcher"])
    assert document.settings["tol"].at("", 0) == 1e-6


def test_aliases_that_would_fill_memory_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    begin = time.process_time()
    with pytest.raises(UnsafeContentError):
        read(tmp_path, "\n".join(lines))
    assert time.process_time() - begin < 10
    with pytest.raises(UnsafeContentError):
        read(tmp_path, "models: &a [*a]\n")


def test_a_file_that_is_missing_too_long_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_configurations(tmp_path / "none.yml")
    path = tmp_path / "merge.yml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        read_configurations(path)
    path.write_text("#" * (FILE_LIMIT + 1))
    with pytest.raises(UnsafeContentError):
        read_configurations(path)
    path.write_text("[" * 1_500)
    with pytest.raises(SkillhubError):
        read_configurations(path)


@given(
    values=st.lists(st.floats(-5, 5), min_size=1, max_size=6),
    position=st.floats(0, 1),
)
def test_a_gradient_stays_between_the_values_around_a_position(values: list[float], position: float) -> None:
    found = Rule(None, tuple(values)).at(position)
    place = position * (len(values) - 1)
    around = values[int(place) : int(place) + 2]
    assert min(around) - 1e-9 <= found <= max(around) + 1e-9
    assert Rule(None, tuple(values)).at(0.0) == values[0]
    assert Rule(None, tuple(values)).at(1.0) == values[-1]


@given(values=st.lists(st.booleans(), min_size=1, max_size=6), position=st.floats(0, 1))
def test_a_gradient_of_switches_is_never_in_between(values: list[bool], position: float) -> None:
    assert Rule(None, tuple(values)).at(position) is values[int(position * (len(values) - 1))]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("merge_method: linear\nmodels: " + "[" * 400 + "]" * 400, UnsafeContentError, "nested too deeply"),
        ('merge_method: linear\nmodels: "\\ud800"\n', UsageError, "line 2, models: a text has half of a character"),
        ('merge_method: linear\n"\\udfff": 1\n', UsageError, "line 1: a text has half of a character"),
        (f"name: {'a' * 101}\nmerge_method: linear\nmodels: [{{model: a}}]\n", UsageError, "is no name for a result"),
    ],
)
def test_texts_that_nothing_could_store_are_refused(
    text: str, error: type[SkillhubError], message: str, tmp_path: Path
) -> None:
    (tmp_path / "merge.yml").write_text(text)
    with pytest.raises(error, match=message):
        read_configurations(tmp_path / "merge.yml")
