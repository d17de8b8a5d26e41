from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

from tests.real.conftest import EXAMPLES, ToldStory

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


def test_the_notebook_runs_to_its_end(demo: ToldStory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLHUB_DEMO_FOLDER", str(demo.work))
    notebook = nbformat.read(EXAMPLES / "pronounce.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "every tensor has the bytes it had before" in printed
