"""The stock huggingface_hub client, in processes of its own: its settings are read once, at import."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.registry_process import ROOT, RegistryProcess


def make_content(seed: int, size: int) -> bytes:
    """Return bytes that nothing can compress, the same everywhere for a seed."""
    return random.Random(seed).randbytes(size)


def make_file(path: str, seed: int, size: int) -> bytes:
    """Return a file's content: text for a path that ends in ``.json``, otherwise bytes."""
    return make_content(seed, size).hex().encode()[:size] if path.endswith(".json") else make_content(seed, size)


def client_environment(registry: RegistryProcess, home: Path, *, xet: bool, token: str | None = None) -> dict[str, str]:
    """Return the environment of a client that knows this registry only; ``home`` holds its caches."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {
        **kept,
        "HF_ENDPOINT": registry.endpoint,
        "HF_TOKEN": registry.token if token is None else token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def run_client(registry: RegistryProcess, home: Path, script: str, *, xet: bool, **arguments: Any) -> Any:
    """Run a function of ``tests/registry/client_scripts.py`` in a new process and return what it returned."""
    command = [sys.executable, "-m", "tests.registry.client_scripts", script, json.dumps(arguments)]
    environment = client_environment(registry, home, xet=xet)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
