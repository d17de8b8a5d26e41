"""Logging in and out, and who one is: as processes against real registries."""

from __future__ import annotations

import configparser
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from skillhub import hub
from skillhub.errors import AuthError, UsageError
from skillhub.hub.tokens import token_name
from tests.support.commands import Shell
from tests.support.registry_process import RegistryProcess, running_registry


@pytest.fixture(scope="module")
def corp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A second registry."""
    with running_registry(tmp_path_factory.mktemp("corp")) as process:
        yield process


@pytest.fixture
def stranger(shell: Shell) -> Shell:
    """A user who has no token."""
    return replace(shell, token=None)


def saved_tokens(shell: Shell) -> dict[str, str]:
    """Return the named tokens in huggingface_hub's file."""
    saved = configparser.ConfigParser(interpolation=None)
    saved.read(shell.home / "hf" / "stored_tokens", encoding="utf-8")
    return {name: saved.get(name, "hf_token") for name in saved.sections()}


def hf(shell: Shell, *arguments: str) -> str:
    """Run huggingface_hub's own command line; returns what it printed."""
    program = Path(sys.executable).with_name("hf")
    done = subprocess.run([program, *arguments], env=shell.variables, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_login_is_shared_with_huggingface_hub(stranger: Shell, registry: RegistryProcess) -> None:
    said = stranger.succeed("login", stdin=f"{registry.token}\n")
    assert f"Logged in to {registry.endpoint} as {registry.user}" in said and "write" in said
    assert registry.token not in said
    assert registry.user in hf(stranger, "auth", "whoami")
    assert stat.S_IMODE((stranger.home / "hf" / "token").stat().st_mode) == 0o600
    told = stranger.json("whoami")
    assert told["name"] == registry.user and told["scope"] == "write" and told["token_from"] == "saved"
    assert told["registry"] == "hub" and told["endpoint"] == registry.endpoint
    assert "Removed" in stranger.succeed("logout")
    assert not (stranger.home / "hf" / "token").exists() and saved_tokens(stranger) == {}
    assert "No token is saved" in stranger.succeed("logout")
    assert "skillhub login" in stranger.fail(9, "whoami")


def test_the_token_of_another_registry_lies_under_its_address_and_is_not_the_active_one(
    stranger: Shell, registry: RegistryProcess, corp: RegistryProcess
) -> None:
    stranger.succeed("login", stdin=f"{registry.token}\n")
    stranger.succeed("login", "--registry", corp.endpoint, stdin=f"  {corp.token}\r\n")
    name = f"skillhub {corp.endpoint}"
    assert saved_tokens(stranger)[name] == corp.token
    assert stat.S_IMODE((stranger.home / "hf" / "stored_tokens").stat().st_mode) == 0o600
    listed = [line for line in hf(stranger, "auth", "list").splitlines() if name in line]
    assert len(listed) == 1 and not listed[0].startswith("*")
    assert (stranger.home / "hf" / "token").read_text() == registry.token
    assert stranger.json("whoami", "--registry", corp.endpoint)["name"] == corp.user
    assert stranger.json("whoami")["endpoint"] == registry.endpoint
    # logging out of one leaves the other
    stranger.succeed("logout")
    assert list(saved_tokens(stranger)) == [name]
    assert stranger.json("logout", "--registry", corp.endpoint)["removed"] is True
    assert saved_tokens(stranger) == {}


def test_a_registry_is_named_by_its_configured_name(stranger: Shell, corp: RegistryProcess) -> None:
    stranger.succeed("config", "registry", "add", "corp", corp.endpoint)
    told = stranger.json("login", "--registry", "corp", "--token", corp.token)
    assert told == {
        "schema": 0,
        "registry": "corp",
        "endpoint": corp.endpoint,
        "name": corp.user,
        "organizations": [],
        "token_name": told["token_name"],
        "scope": "write",
        "entities": [],
    }
    assert f"{corp.endpoint} (corp)" in stranger.succeed("whoami", "--registry", "corp")
    assert "No registry is called other" in stranger.fail(4, "login", "--registry", "other")


def test_organisations_and_a_narrow_scope_are_told(stranger: Shell, corp: RegistryProcess) -> None:
    token = corp.add_user("dora", scope="read")
    corp.add_organization("Team", "dora")
    stranger.succeed("login", "--registry", corp.endpoint, "--token", token)
    said = stranger.succeed("whoami", "--registry", corp.endpoint)
    assert said.startswith("dora\n") and "Team" in said and "read" in said


def test_a_wrong_token_is_not_saved_nor_shown(
    stranger: Shell, registry: RegistryProcess, corp: RegistryProcess
) -> None:
    for more in ([], ["--registry", corp.endpoint]):
        said = stranger.fail(9, "login", *more, "--token", "hf_wrongwrongwrong")
        assert "nothing was saved" in said and "wrongwrong" not in said
        done = stranger.run("login", *more, "--verbose", stdin="hf_wrongwrongwrong\n")
        assert done.returncode == 9 and "wrongwrong" not in done.stdout + done.stderr
    # a token of the other registry is as wrong
    stranger.fail(9, "login", "--registry", corp.endpoint, "--token", registry.token)
    assert not (stranger.home / "hf" / "token").exists() and saved_tokens(stranger) == {}


def test_no_token_is_a_mistake_in_usage(stranger: Shell) -> None:
    assert "No token was given" in stranger.fail(2, "login")
    elsewhere = "http://127.0.0.1:9/hub"
    assert f"skillhub login --registry {elsewhere} < FILE" in stranger.fail(2, "login", "--registry", elsewhere)
    assert "line break" in stranger.fail(2, "login", "--token", "hf_two lines")


def test_a_variable_that_goes_first_is_pointed_out(shell: Shell, registry: RegistryProcess) -> None:
    done = shell.run("login", stdin=registry.create_token(registry.user, scope="read"))
    assert done.returncode == 0 and "HF_TOKEN is set" in done.stderr
    told = shell.json("whoami")
    assert told["token_from"] == "from HF_TOKEN" and told["scope"] == "write"
    assert "HF_TOKEN is still set" in shell.run("logout").stderr


def test_what_only_a_project_calls_a_registry_gets_no_token(stranger: Shell, corp: RegistryProcess) -> None:
    text = f'requirements = []\n[[registry]]\nname = "corp"\nurl = "{corp.endpoint}"\n'
    (stranger.home / "skillhub.toml").write_text(text)
    said = stranger.fail(2, "login", "--registry", "corp", "--token", corp.token)
    assert f"--registry {corp.endpoint}" in said
    stranger.succeed("login", "--registry", corp.endpoint, "--token", corp.token)
    assert stranger.json("whoami", "--registry", "corp")["name"] == corp.user


def test_a_saved_token_is_used_where_its_registry_is_the_configured_one(stranger: Shell, corp: RegistryProcess) -> None:
    stranger.succeed("login", "--registry", corp.endpoint, "--token", corp.token)
    moved = replace(stranger, endpoint=corp.endpoint)
    assert moved.json("whoami")["name"] == corp.user
    moved.succeed("logout")
    moved.fail(9, "whoami")


def test_a_vendored_folder_knows_no_users(stranger: Shell) -> None:
    for verb in ("login", "whoami"):
        assert "knows no users" in stranger.fail(2, verb, "--registry", stranger.home.as_uri())


def test_offline_nothing_is_tried(stranger: Shell) -> None:
    script = "from skillhub.cli import main; main(['login', '--token', 'hf_something'])"
    variables = stranger.variables | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 8, done.stderr


def test_a_damaged_file_of_tokens_is_not_overwritten(stranger: Shell, corp: RegistryProcess) -> None:
    (stranger.home / "hf").mkdir()
    (stranger.home / "hf" / "stored_tokens").write_text("no section\n")
    said = stranger.fail(9, "login", "--registry", corp.endpoint, "--token", corp.token)
    assert "stored_tokens" in said and "Traceback" not in said
    assert (stranger.home / "hf" / "stored_tokens").read_text() == "no section\n"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("https://Hub.Corp.Example:443/", "skillhub https://hub.corp.example"),
        ("http://user:secret@hub:80", "skillhub http://hub"),
        ("http://[::1]:8000/sub/", "skillhub http://[::1]:8000/sub"),
        ("https://hub:8443", "skillhub https://hub:8443"),
    ],
)
def test_one_registry_has_one_name_however_it_is_written(written: str, name: str) -> None:
    assert token_name(written) == name


def test_an_open_connection_gets_no_token_of_an_encrypted_one(homes: Path) -> None:
    hub.store_token("https://hub.example", "hf_secret%(x)s")
    assert hub.stored_token("https://HUB.example/") == "hf_secret%(x)s"
    assert hub.stored_token("http://hub.example") is None
    assert hub.stored_token("https://hub.example.org") is None
    assert hub.default_registry("https://hub.example").token == "hf_secret%(x)s"
    with pytest.raises(UsageError, match="no address"):
        hub.stored_token("https://hub:port")


def test_what_others_keep_in_the_file_stays(homes: Path) -> None:
    from huggingface_hub import constants

    path = Path(constants.HF_STORED_TOKENS_PATH)
    path.parent.mkdir(parents=True)
    path.write_text("[mine]\nhf_token = hf_mine\nrefresh_token = again\nexpires_at = 1\n")
    hub.store_token("https://hub.example", "hf_corp")
    hub.remove_token("https://hub.example")
    saved = configparser.ConfigParser()
    saved.read(path)
    assert dict(saved["mine"]) == {"hf_token": "hf_mine", "refresh_token": "again", "expires_at": "1"}
    assert sorted(one.name for one in path.parent.iterdir()) == ["stored_tokens", "stored_tokens.lock"]


def test_a_file_that_is_damaged_is_told_wherever_a_token_is_looked_up(homes: Path) -> None:
    from huggingface_hub import constants

    Path(constants.HF_STORED_TOKENS_PATH).parent.mkdir(parents=True)
    Path(constants.HF_STORED_TOKENS_PATH).write_bytes(b"\xff\xfe")
    with pytest.raises(AuthError, match="damaged"):
        hub.default_registry("https://hub.example")


def test_results_are_json_and_errors_as_well(stranger: Shell) -> None:
    done = stranger.run("whoami", "--json")
    assert done.returncode == 9 and json.loads(done.stdout)["error"] == "auth"


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_on_a_terminal_the_token_is_asked_for_and_not_shown(stranger: Shell, registry: RegistryProcess) -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "skillhub", "login"],
        env=stranger.variables,
        cwd=stranger.home,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        shown = b""
        while b"Token for" not in shown:
            shown += os.read(ours, 1024)
        while termios.tcgetattr(ours)[3] & termios.ECHO:  # the prompt is written just before echo is off
            os.sched_yield()
        os.write(ours, registry.token.encode() + b"\n")
        with suppress(OSError):  # the terminal ends with the process
            while piece := os.read(ours, 1024):
                shown += piece
        assert process.wait(timeout=60) == 0, shown
    os.close(ours)
    text = shown.decode()
    assert f"Token for {registry.endpoint}" in text and f"as {registry.user}" in text
    assert registry.token not in text
