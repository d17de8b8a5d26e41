"""Running the command line as a user does: a process with an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shell:
    """A user's shell: a home for store, environments and state, and a registry where one is given."""

    home: Path
    endpoint: str = "http://127.0.0.1:9"  # nothing listens there
    token: str | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The process environment: nothing of the caller's Hub or skillhub settings is let in."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SKILLHUB_"))}
        ours = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home / "hf"),
            "SKILLHUB_CACHE": str(self.home / "cache"),
            "SKILLHUB_HOME": str(self.home / "home"),
            "SKILLHUB_STATE": str(self.home / "state"),
            "SKILLHUB_CONFIG": str(self.home / "config"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "80",
        }
        return inherited | ours | ({"HF_TOKEN": self.token} if self.token else {})

    def run(self, *arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``skillhub`` with these arguments."""
        return subprocess.run(
            [sys.executable, "-m", "skillhub", *map(str, arguments)],
            env=self.variables,
            cwd=self.home,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    def succeed(self, *arguments: str | Path, stdin: str = "") -> str:
        """Run a command that must end with 0; returns its stdout."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str | Path) -> dict[str, Any]:
        """Run a command with ``--json`` that must end with 0; returns what it printed."""
        result: dict[str, Any] = json.loads(self.succeed(*arguments, "--json"))
        return result

    def fail(self, code: int, *arguments: str | Path) -> str:
        """Run a command that must end with ``code``: a cause, a remedy and no traceback; returns its stderr."""
        done = self.run(*arguments)
        assert done.returncode == code, f"exit {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("error: "), done.stderr
        assert "\nhint: " in done.stderr, done.stderr
        return done.stderr
