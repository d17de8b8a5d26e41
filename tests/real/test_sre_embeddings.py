from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from tests.real.conftest import EXAMPLES, run_example

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


def test_a_published_fine_tune_travels_even_when_the_story_is_killed_once(tmp_path: Path) -> None:
    work = tmp_path / "work"
    _kill_at("Publish it", work)
    told = run_example("sre_embeddings.py", work)

    assert told.exit_code == 0, told.output
    assert told.output.count("done in an earlier run") == 1  # packing was over, publishing was not
    assert all(told.figures["promises"].values())
    assert told.figures["largest_difference"] <= 0.01
    cosines, digests = told.figures["cosines"], told.figures["digests"]
    assert cosines["after ungraft"] == cosines["base"]
    assert digests["after ungraft"] == digests["base"] != digests["base + pack"]
    assert mean(cosines["fine-tune"]) > mean(cosines["base"]) + 0.5  # the fine-tune is worth a pack


def _kill_at(title: str, work: Path) -> None:
    command = [sys.executable, "-u", str(EXAMPLES / "sre_embeddings.py"), "--work", str(work)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=EXAMPLES.parent) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if title in line:
                process.kill()
