from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.real.conftest import ToldStory, run_example

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

LAYERS = 5


@pytest.fixture(scope="module")
def short(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options of the example for three skills that are learned a little, by the lowest layers of SmolLM2: minutes less."""
    base = tmp_path_factory.mktemp("base") / f"smollm2-{LAYERS}-layers"
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype="auto")
    del model.model.layers[LAYERS:]
    model.config.num_hidden_layers = LAYERS
    model.config.layer_types = None
    model.save_pretrained(base)
    return ("--base", str(base), "--skills", "3", "--steps", "8")


@pytest.fixture(scope="module")
def story(short: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> ToldStory:
    """The example in its short form."""
    return run_example("forget_free.py", tmp_path_factory.mktemp("forget-free") / "work", *short)


def test_a_routed_model_keeps_what_every_pack_brings(story: ToldStory) -> None:
    broken = [promise for promise, came_true in story.figures["promises"].items() if not came_true]
    # A base cut to a few layers is no language model: one skill teaches it much of the next.
    assert set(broken) <= {"no other way keeps as much of the earlier skills"}, story.output
    assert story.exit_code == bool(broken)
    routed = story.figures["ways"]["routed"][-1]
    for skill in story.figures["skills"]:
        base, tuned = (story.figures[title][skill]["nll"] for title in ("base", "tuned"))
        assert base - tuned > 1  # it learned something that could be forgotten
        assert base - routed[skill]["nll"] >= 0.95 * (base - tuned)


def test_rows_get_their_own_packs_and_one_pack_is_routed_as_it_is_fused(story: ToldStory) -> None:
    chosen = story.figures["chosen"][-1]
    assert list(chosen) == story.figures["skills"]
    assert mean(choice == skill for skill, choices in chosen.items() for choice in choices) >= 0.97
    first = story.figures["skills"][0]
    alone = story.figures["own pack"][first]["nll"]
    assert story.figures["ways"]["routed"][0][first]["nll"] == pytest.approx(alone, abs=0.05)
    assert story.figures["ways"]["sequential"][0][first] == story.figures["tuned"][first]


def test_the_picture_is_drawn_and_only_packs_and_one_checkpoint_stay(story: ToldStory) -> None:
    assert (story.work / "forget_free.png").read_bytes().startswith(b"\x89PNG")
    left = sorted(path.parent.name for path in Path(story.work).rglob("model.safetensors"))
    assert left == sorted(story.figures["skills"][-2:])


def test_told_again_nothing_is_played_twice(story: ToldStory, short: tuple[str, ...]) -> None:
    again = run_example("forget_free.py", story.work, *short)
    assert again.exit_code == story.exit_code
    assert again.output.count("done in an earlier run") == len(story.figures["seconds"])
    assert again.figures == story.figures
