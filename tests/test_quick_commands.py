"""What is installed is looked at, and found to be installed, at once: nothing heavy is loaded, and no server is asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.commands import Shell
from tests.support.faults import FaultyProxy, faulty_proxy
from tests.support.packs import BASE, make_pack
from tests.support.registry_process import RegistryProcess
from tests.support.repositories import put_adapter

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

COMMANDS = [
    ["list"],
    ["show", "quick/math-pack"],
    ["tree"],
    ["tree", "--invert"],
    ["why", "quick/shared"],
    ["freeze", "--hashes"],
    ["check"],
    ["sync"],
    ["sync", "--locked"],
    ["sync", "--frozen"],
    ["sync", "--dry-run"],
]
HEAVY = {"torch", "transformers", "numpy", "huggingface_hub", "requests", "httpx", "zstandard"}


@pytest.fixture(scope="module")
def place(registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shell, FaultyProxy]]:
    """Somebody with packs and an adapter from a registry, whose requests are counted from now on."""
    token = registry.add_user("quick")
    owner = RegistryProcess(registry.endpoint, "quick", token, registry.data, registry.process)
    author = Shell(tmp_path_factory.mktemp("author"), registry.endpoint, token)
    make_pack(author.home / "shared", "shared")
    make_pack(author.home / "math", "math-pack", requires=["quick/shared>=1"])
    author.succeed("publish", "shared", "quick/shared")
    author.succeed("publish", "math", "quick/math-pack")
    put_adapter(owner, "quick/lora")
    with faulty_proxy(registry.endpoint) as proxy:
        shell = Shell(tmp_path_factory.mktemp("user"), proxy.endpoint, token)
        (shell.home / "skillhub.toml").touch()
        make_pack(shell.home / "own", "own")
        shell.succeed("install", "quick/math-pack", "peft:quick/lora", "./own", "--base", BASE)
        proxy.reset()
        yield shell, proxy


def loaded_by(shell: Shell, arguments: list[str]) -> set[str]:
    """Run a command that must succeed; return the top-level modules that were loaded at its end."""
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr))\n"
        f"from skillhub.cli import main\nmain({arguments!r})"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=shell.variables, cwd=shell.home, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_quick_command_loads_nothing_heavy_and_asks_no_server(
    arguments: list[str], place: tuple[Shell, FaultyProxy]
) -> None:
    shell, proxy = place
    loaded = loaded_by(shell, arguments)
    assert "skillhub" in loaded and not loaded & HEAVY
    assert proxy.seen == []
    unreachable = Shell(shell.home)
    assert unreachable.run(*arguments, "--json").returncode == 0


@pytest.mark.parametrize("arguments", [["show", "./own"], ["list", "-e", "."], ["verify"]], ids=" ".join)
def test_folders_and_bytes_are_looked_at_without_the_network_as_well(
    arguments: list[str], place: tuple[Shell, FaultyProxy]
) -> None:
    shell, proxy = place
    assert not loaded_by(shell, arguments) & HEAVY
    assert proxy.seen == []
