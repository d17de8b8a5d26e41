"""The command line: starting, stopping, accounts, and errors as sentences."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from huggingface_hub import HfApi

from tests.support.registry_process import RegistryProcess, registry_environment, run_registry, running_registry


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "skillhub_registry", *arguments]
    return subprocess.run(command, env=registry_environment(), capture_output=True, text=True, check=False, timeout=60)


def expect_error(code: int, *arguments: str, match: str) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert match in done.stderr
    assert "Hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_cleanly(tmp_path: Path, number: int) -> None:
    with running_registry(tmp_path) as registry:
        assert requests.get(f"{registry.endpoint}/healthz").text == "ok"
        registry.process.send_signal(number)
        assert registry.process.wait(timeout=30) == 0
    with running_registry(tmp_path) as again:
        assert (again.user, again.token) == (registry.user, "")
        assert HfApi(endpoint=again.endpoint, token=registry.token).whoami()["name"] == registry.user


def test_says_what_to_export(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "skillhub_registry", "serve", "--port", "0", "--data", str(tmp_path)]
    process = subprocess.Popen(command, env=registry_environment(), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = []
        while "Ctrl-C" not in "".join(lines):
            lines.append(process.stderr.readline())
        said = dict(line.split("export ")[1].strip().split("=") for line in lines if "export " in line)
        assert said["HF_TOKEN"].startswith("hf_")
        assert requests.get(said["HF_ENDPOINT"]).status_code == 200
    finally:
        process.terminate()
        process.communicate()


def test_survives_a_kill(tmp_path: Path) -> None:
    with running_registry(tmp_path) as registry:
        api = HfApi(endpoint=registry.endpoint, token=registry.token)
        name = api.create_repo(f"{registry.user}/kept").repo_id
        oid = api.upload_file(path_or_fileobj=b"kept", path_in_repo="a.txt", repo_id=name).oid
        (registry.data / "incoming" / "left-over").write_bytes(b"half of something")
        registry.process.kill()
        registry.process.wait()
    with running_registry(tmp_path, token=registry.token) as again:
        assert HfApi(endpoint=again.endpoint, token=again.token).model_info(name).sha == oid
        assert not (again.data / "incoming" / "left-over").exists()
        assert again.arriving() == []


def test_accounts_and_tokens(registry: RegistryProcess) -> None:
    data = registry.data
    token = registry.add_user("dora")
    assert "dora" in run_registry("user", "list", data=data).split()
    (entry,) = json.loads(run_registry("token", "list", "dora", "--json", data=data))
    assert (entry["account"], entry["scope"]) == ("dora", "write")
    connection = sqlite3.connect(data / "registry.sqlite3")
    stored = connection.execute("SELECT digest FROM tokens").fetchall()
    connection.close()
    assert token not in str(stored)

    api = HfApi(endpoint=registry.endpoint, token=token)
    assert api.whoami()["name"] == "dora"
    run_registry("token", "revoke", str(entry["id"]), data=data)
    assert (
        requests.get(f"{registry.endpoint}/api/whoami-v2", headers={"Authorization": f"Bearer {token}"}).status_code
        == 401
    )

    registry.add_organization("dorans", "dora")
    assert {"name": "dorans", "members": ["dora"], "roles": {"dora": "admin"}} in json.loads(
        run_registry("org", "list", "--json", data=data)
    )
    run_registry("org", "leave", "dorans", "dora", data=data)
    run_registry("org", "join", "dorans", registry.user, data=data)
    assert f"dorans  {registry.user}" in run_registry("org", "list", data=data)

    place = ["--data", str(data)]
    expect_error(2, "user", "add", "DORA", *place, match="The name DORA is taken")
    expect_error(4, "token", "create", "nobody", *place, match="There is no user nobody")
    expect_error(4, "token", "create", "dorans", *place, match="There is no user dorans")
    expect_error(4, "token", "revoke", "9999", *place, match="There is no token number 9999")
    done = run("user", "add", "api", *place)
    assert (done.returncode, "reserved" in done.stderr) == (2, True)


def test_errors_are_sentences(registry: RegistryProcess, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        expect_error(
            8, "serve", "--port", port, "--data", str(tmp_path / "a"), match=f"Cannot listen on 127.0.0.1 port {port}"
        )
    expect_error(2, "serve", "--port", "0", "--data", str(registry.data), match="Another process is serving")
    (tmp_path / "file").write_text("not a folder")
    expect_error(14, "serve", "--port", "0", "--data", str(tmp_path / "file" / "sub"), match="cannot be made")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "registry.sqlite3").write_text("this is not a database, whatever its name says" * 100)
    expect_error(14, "user", "list", "--data", str(tmp_path / "odd"), match="cannot be used")
    (tmp_path / "newer").mkdir()
    connection = sqlite3.connect(tmp_path / "newer" / "registry.sqlite3")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    expect_error(15, "serve", "--port", "0", "--data", str(tmp_path / "newer"), match="is of version 99")


@pytest.mark.parametrize(
    "command",
    [
        ("fsck",),
        ("gc",),
        ("audit",),
        ("user", "list"),
        ("token", "list"),
        ("token", "create", "ann"),
        ("org", "list"),
        ("mirror", "list"),
    ],
    ids=" ".join,
)
def test_what_looks_after_a_registry_makes_none_where_the_folder_is_mistyped(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    expect_error(4, *command, "--data", str(tmp_path / "nowhere"), match="There is no registry in")
    assert not (tmp_path / "nowhere").exists()


def test_accounts_may_be_made_before_the_first_start(tmp_path: Path) -> None:
    run_registry("user", "add", "ann", data=tmp_path / "new")
    run_registry("org", "add", "acme", "--member", "ann", data=tmp_path / "new")
    assert run_registry("org", "list", data=tmp_path / "new") == "acme  ann (admin)\n"


@pytest.mark.parametrize(
    "command",
    [
        ("audit", "--limit", "9" * 30),
        ("audit", "--repository", "\udcff"),
        ("token", "revoke", "9" * 30),
        ("token", "create", "NAME", "--name", "\udcff"),
        ("token", "create", "NAME", "--name", "two\nlines"),
        ("token", "create", "NAME", "--name", ""),
        ("token", "create", "NAME", "--name", "x" * 101),
    ],
)
def test_arguments_that_cannot_be_are_wrong_usage(registry: RegistryProcess, command: tuple[str, ...]) -> None:
    before = run_registry("token", "list", "--json", data=registry.data)
    filled = [registry.user if one == "NAME" else one for one in command]
    done = run(*filled, "--data", str(registry.data))
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert run_registry("token", "list", "--json", data=registry.data) == before


def test_a_password_that_is_no_text_is_an_error(registry: RegistryProcess) -> None:
    command = [sys.executable, "-m", "skillhub_registry", "user", "password", registry.user]
    command += ["--data", str(registry.data)]
    done = subprocess.run(command, env=registry_environment(), input=b"\xff" * 12, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)
    assert b"The password is not valid UTF-8" in done.stderr


def test_help_is_quick_and_short() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("serve", "user", "token", "org"):
        assert f"\n  {command}" in done.stdout


def test_missing_extra_is_a_sentence(tmp_path: Path) -> None:
    code = "import sys; sys.modules['starlette'] = None; from skillhub_registry.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--data", str(tmp_path / "data")]
    done = subprocess.run(command, env=registry_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Serving needs starlette" in done.stderr
    assert 'pip install "skillhub-packs[registry]"' in done.stderr
    assert "Traceback" not in done.stderr
