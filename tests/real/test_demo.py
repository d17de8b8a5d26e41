from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

from tests.real.conftest import EXAMPLES, ToldStory, run_example

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]


def test_the_demo_keeps_its_promises(demo: ToldStory) -> None:
    assert demo.exit_code == 0, demo.output
    assert all(demo.figures["promises"].values())
    assert demo.figures["pack_bytes"] * 40 <= demo.figures["checkpoint_bytes"]
    assert demo.figures["gain_kept"] >= 0.98


def test_the_fine_tune_learned_something_worth_packing(demo: ToldStory) -> None:
    assert demo.figures["base"]["nll"] - demo.figures["tuned"]["nll"] > 3
    assert demo.figures["grafted"]["tokens"] > 2 * demo.figures["base"]["tokens"]


def test_the_control_is_back_to_the_bit_after_ungraft(demo: ToldStory) -> None:
    grafted = demo.figures["grafted"]
    assert grafted["digests"]["ungrafted"] == grafted["digests"]["base"] != grafted["digests"]["grafted"]
    assert grafted["ungrafted_text"] == demo.figures["base"]["ordinary_text"] != grafted["ordinary_text"]


def test_the_token_is_kept_from_others(demo: ToldStory) -> None:
    assert (demo.work / "registry" / "account.json").stat().st_mode & 0o077 == 0
    assert "hf_" not in demo.output


def test_told_again_nothing_is_played_twice(demo: ToldStory) -> None:
    again = run_example("demo.py", demo.work)
    assert again.exit_code == 0
    assert again.output.count("done in an earlier run") == len(demo.figures["seconds"])
    assert again.figures == demo.figures


def test_the_notebook_runs_to_its_end(demo: ToldStory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLHUB_DEMO_FOLDER", str(demo.work))
    notebook = nbformat.read(EXAMPLES / "pronounce.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "every tensor has the bytes it had before" in printed
