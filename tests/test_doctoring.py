"""The doctor, on machines that are well and on machines that are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Shell
from tests.support.faults import faulty_proxy
from tests.support.packs import BASE, make_pack
from tests.support.registry_process import RegistryProcess


def examine(shell: Shell, *more: str, code: int = 0, **variables: str) -> dict[str, dict[str, str]]:
    """Run the doctor, which must end with ``code``; returns name → check, the worst of each name."""
    done = subprocess.run(
        [sys.executable, "-m", "skillhub", "doctor", "--json", *more],
        env=shell.variables | variables,
        cwd=shell.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["ok"] == (code == 0)
    rank = ["ok", "warning", "problem"]
    return {one["name"]: one for one in sorted(told["checks"], key=lambda one: rank.index(one["status"]))}


@contextmanager
def answering(status: int, body: bytes, headers: dict[str, str]) -> Iterator[str]:
    """Run a server that answers everything alike; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_all_is_well(shell: Shell, registry: RegistryProcess) -> None:
    pack = make_pack(shell.home / "pack", name="healthy", repo=None)
    shell.succeed("install", pack.folder, "--base", BASE)
    found = examine(shell)
    assert {one["status"] for one in found.values()} <= {"ok", "warning"}  # the machine may be short of room
    for name in ("python", "skillhub", "packages", "cache", "config.toml", "policy", "environment", "store"):
        assert found[name]["status"] == "ok", found[name]
    assert found["environment"]["message"].endswith("1 pack, as locked.")
    assert registry.user in found["token hub"]["message"]
    printed = shell.succeed("doctor")
    assert registry.endpoint in printed and str(shell.token) not in printed


def test_offline_no_server_is_asked(shell: Shell, registry: RegistryProcess) -> None:
    with faulty_proxy(registry.endpoint) as proxy:
        away = replace(shell, endpoint=proxy.endpoint)
        assert "none was asked" in examine(away, "--offline")["registries"]["message"]
        assert "none was asked" in examine(away, HF_HUB_OFFLINE="1")["registries"]["message"]
        assert not proxy.seen
        examine(away)
        assert [request.split("?")[0] for request in proxy.seen] == ["GET /api/models", "GET /api/whoami-v2"]
        assert [str(shell.token) in heard for heard in proxy.heard] == [False, True]


def test_a_registry_that_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    found = examine(Shell(tmp_path), code=1)
    assert found["registry hub"]["status"] == "problem" and found["registry hub"]["hint"]
    done = Shell(tmp_path).run("doctor")
    assert done.returncode == 1 and "1 problem" in done.stdout


def test_what_is_no_hub_is_a_problem(tmp_path: Path) -> None:
    with answering(200, b"<html>hello</html>", {}) as endpoint:
        assert "not like a Hugging Face Hub" in examine(Shell(tmp_path, endpoint), code=1)["registry hub"]["message"]


def test_a_wrong_clock_is_a_warning(tmp_path: Path) -> None:
    with answering(200, b"[]", {"Date": "Mon, 01 Jan 2024 00:00:00 GMT"}) as endpoint:
        found = examine(Shell(tmp_path, endpoint))
        assert found["clock"]["status"] == "warning" and "ahead of" in found["clock"]["message"]
    with answering(200, b"[]", {"Date": "yesterday"}) as endpoint:
        assert "clock" not in examine(Shell(tmp_path, endpoint))


def test_a_token_that_is_not_accepted_is_a_problem(shell: Shell) -> None:
    wrong = replace(shell, token="hf_revokedrevoked")
    found = examine(wrong, code=1)
    assert found["token hub"]["status"] == "problem" and "HF_TOKEN" in found["token hub"]["hint"]
    assert "revokedrevoked" not in json.dumps(found)
    assert "skillhub login" in examine(replace(shell, token=None))["token hub"]["hint"]


def test_a_token_of_another_registry_is_noticed_and_not_tried(shell: Shell, registry: RegistryProcess) -> None:
    shell.succeed("login", "--registry", registry.endpoint.replace("127.0.0.1", "localhost"), stdin=registry.token)
    with faulty_proxy(registry.endpoint) as proxy:
        found = examine(replace(shell, endpoint=proxy.endpoint), code=1)
        assert "localhost" in found["token hub"]["message"] and found["token hub"]["status"] == "problem"
        assert not [heard for heard in proxy.heard if registry.token in heard]


def test_every_configured_registry_is_asked(shell: Shell, registry: RegistryProcess) -> None:
    shell.succeed("config", "registry", "add", "corp", "http://127.0.0.1:9")
    found = examine(shell, code=1)
    assert found["registry corp"]["status"] == "problem" and found["registry hub"]["status"] == "ok"


def test_tokens_that_others_may_read_are_noticed(shell: Shell, registry: RegistryProcess) -> None:
    shell.succeed("login", stdin=registry.token)
    assert "tokens" not in examine(shell)
    (shell.home / "hf" / "token").chmod(0o644)
    found = examine(shell)
    assert found["tokens"]["status"] == "warning" and "chmod 600" in found["tokens"]["hint"]


def make_distribution(folder: Path, name: str, version: str, *, record: str = "") -> None:
    """Make what pip leaves of an installed distribution."""
    made = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (made / "RECORD").write_text(record)


@pytest.mark.parametrize("stranger", ["skillhub", "skillhub-cli", "some-tool"])
def test_a_namesake_is_noticed(tmp_path: Path, stranger: str) -> None:
    record = "skillhub/__init__.py,sha256=x,1\nskillhub/cli.py,sha256=x,1\n"
    make_distribution(tmp_path / "site", stranger, "0.2", record=record)
    found = examine(Shell(tmp_path), "--offline", code=1, PYTHONPATH=path_with(tmp_path / "site"))
    assert found["skillhub"]["status"] == "problem" and f"pip uninstall {stranger}" in found["skillhub"]["hint"]


def test_a_distribution_that_only_sounds_alike_is_left_alone(tmp_path: Path) -> None:
    record = "other/skillhub/__init__.py,sha256=x,1\nskillhub_extra/__init__.py,sha256=x,1\n"
    make_distribution(tmp_path / "site", "skillhub-extra", "0.2", record=record)
    examine(Shell(tmp_path), "--offline", PYTHONPATH=path_with(tmp_path / "site"))


def test_an_outdated_package_is_a_problem(tmp_path: Path) -> None:
    make_distribution(tmp_path / "site", "tomlkit", "0.1")
    found = examine(Shell(tmp_path), "--offline", code=1, PYTHONPATH=path_with(tmp_path / "site"))
    assert "tomlkit is 0.1" in found["packages"]["message"] and "pip install" in found["packages"]["hint"]


def path_with(folder: Path) -> str:
    return os.pathsep.join(one for one in (str(folder), os.environ.get("PYTHONPATH", "")) if one)


def test_another_command_of_our_name_is_noticed(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "skillhub"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    found = examine(Shell(tmp_path), "--offline", PATH=path)
    assert found["command"]["status"] == "warning" and str(program) in found["command"]["message"]


def test_settings_that_cannot_be_read_are_problems(tmp_path: Path) -> None:
    user = Shell(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text("ownres = []\n")
    (tmp_path / "config" / "policy.toml").write_text("[")
    (tmp_path / "skillhub.toml").write_text("requirements = 1\n")
    found = examine(user, "--offline", code=1)
    for name in ("config.toml", "policy", "environment", "registries"):
        assert found[name]["status"] == "problem", name
    assert "ownres" in found["config.toml"]["message"]
    (tmp_path / "config" / "config.toml").unlink()
    named = examine(user, "--offline", code=1, SKILLHUB_POLICY=str(tmp_path / "nowhere.toml"))
    assert "nowhere.toml" in named["policy"]["message"]


def test_a_folder_that_cannot_be_used_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    found = examine(Shell(tmp_path), "--offline", code=1)
    assert found["state"]["status"] == "problem" and "SKILLHUB_STATE" in found["state"]["hint"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    assert "Permission" in examine(Shell(tmp_path), "--offline", code=1)["cache"]["message"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_may_not_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "store").mkdir(mode=0o500)
    found = examine(Shell(tmp_path), "--offline", code=1)
    assert found["cache"]["status"] == "ok" and "Permission" in found["sharing"]["message"]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_a_store_on_another_file_system_is_a_warning(tmp_path: Path) -> None:
    found = examine(Shell(tmp_path), "--offline", SKILLHUB_CACHE="/dev/shm/skillhub-is-never-made-here")
    assert found["sharing"]["status"] == "warning" and "SKILLHUB_CACHE" in found["sharing"]["hint"]
    assert not Path("/dev/shm/skillhub-is-never-made-here").exists()


def test_environments_that_are_stale_or_damaged_are_told(shell: Shell) -> None:
    pack = make_pack(shell.home / "pack", name="poorly", repo=None)
    (shell.home / "skillhub.toml").write_text("requirements = []\n")
    shell.succeed("install", pack.folder, "--base", BASE)
    project = shell.home / "skillhub.toml"
    text = project.read_text()
    project.write_text(
        text + 'constraints = ["acme/other<2"]\n' if "[[" not in text else f'constraints = ["a/b<2"]\n{text}'
    )
    found = examine(shell, "--offline")["environment"]
    assert found["status"] == "warning" and "not up to date" in found["message"]
    (shell.home / ".skillhub" / "packs" / "_" / "poorly" / "skillpack.json").unlink()
    found = examine(shell, "--offline", code=1)["environment"]
    assert found["status"] == "problem" and "sync --reinstall" in found["hint"]


def test_leftovers_and_a_store_over_its_limit_are_told(shell: Shell) -> None:
    pack = make_pack(shell.home / "pack", name="big", repo=None, size=50_000)
    shell.succeed("install", pack.folder, "--base", BASE)
    shell.succeed("uninstall", "big")
    (shell.home / "cache" / "store" / "staging" / ("0" * 64)).mkdir(parents=True)
    shell.succeed("config", "set", "cache_limit", "1kB")
    found = examine(shell, "--offline")
    assert found["store"]["status"] == "warning" and "cache prune" in found["store"]["hint"]
    assert found["leftovers"]["status"] == "warning"


def test_proxies_are_told_without_their_passwords(tmp_path: Path) -> None:
    found = examine(Shell(tmp_path), "--offline", HTTPS_PROXY="http://me:secretsecret@proxy.example:3128")
    assert "proxy.example" in found["proxies"]["message"] and "secretsecret" not in json.dumps(found)
    assert examine(Shell(tmp_path), "--offline", HTTPS_PROXY="proxy.example:3128")["proxies"]["status"] == "warning"


def test_the_doctor_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom skillhub.diagnosis import diagnose\ndiagnose(offline=True)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'loaded'\n"
    )
    subprocess.run([sys.executable, "-c", script], env=Shell(tmp_path).variables, cwd=tmp_path, check=True)


def test_without_a_project_and_packs_there_is_nothing_to_complain_about(tmp_path: Path) -> None:
    found = examine(Shell(tmp_path), "--offline")
    assert found["environments"]["message"] == "There are none yet."
    assert list(tmp_path.iterdir()) == []  # looking makes nothing
