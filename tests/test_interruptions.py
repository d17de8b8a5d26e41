"""Kill installing, upgrading, uninstalling and publishing at every step, and fill the disk at every step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skillhub import hub
from skillhub.publisher import publish
from tests.support.interruptions import PACK
from tests.support.packs import make_pack
from tests.support.registry_process import ROOT, RegistryProcess
from tests.support.steps import FULL_DISK, KILL


@pytest.fixture(scope="module")
def token(registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A token of the owner of a pack with two releases."""
    folder = tmp_path_factory.mktemp("published")
    token = registry.add_user("interruptions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLHUB_STATE", str(folder / "state"))
        for version in ("1.0", "1.1"):
            pack = make_pack(folder / version, PACK, version, files=0, size=200)
            publish(pack, f"interruptions/{PACK}", registry=hub.Registry("hub", registry.endpoint, token))
    return token


@pytest.mark.parametrize(
    ("scenario", "how", "least_steps"),
    [
        ("install", KILL, 120),
        ("install", FULL_DISK, 60),
        ("upgrade", KILL, 120),
        ("uninstall", KILL, 20),
        ("publish", KILL, 20),
    ],
)
def test_at_every_step(
    registry: RegistryProcess, token: str, tmp_path: Path, scenario: str, how: str, least_steps: int
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-W", "ignore:Use 'content=:DeprecationWarning"),
            *("-m", "tests.support.interruptions", scenario, how, registry.endpoint, token, str(tmp_path / "steps")),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "registry")]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= least_steps
