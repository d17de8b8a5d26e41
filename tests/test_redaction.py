"""Tokens never appear: not in errors, not in their causes, not in logs, not in tracebacks, not in what is written."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from skillhub import hub
from skillhub.cli import console
from skillhub.errors import NetworkError, UsageError
from skillhub.redaction import hide, presentable
from tests.support.commands import Shell
from tests.support.packs import BASE, make_pack
from tests.support.registry_process import RegistryProcess

MARK = "marked5ecret"
"""Is in every secret of these tests."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"GET https://ann:{MARK}@registry.example/x failed", "GET https://***@registry.example/x failed"),
        (f"http://{MARK}@127.0.0.1:9", "http://***@127.0.0.1:9"),
        (f"Illegal header value b'Bearer {MARK}'", "Illegal header value b'Bearer ***'"),
        (f"authorization: basic {MARK}==, more", "authorization: basic ***, more"),
        (f"Invalid token hf_{MARK}aBc.", "Invalid token hf_***."),
        (
            f"https://cdn.example/f?X-Amz-Signature={MARK}&X-Amz-Credential={MARK}&x=1",
            "https://cdn.example/f?X-Amz-Signature=***&X-Amz-Credential=***&x=1",
        ),
        (f"'/f?a=1&Signature={MARK}' and ?sig={MARK}", "'/f?a=1&Signature=***' and ?sig=***"),
        ("a \x1b[31mred\x1b[0m \u202eword\nand a line", "a \ufffd[31mred\ufffd[0m \ufffdword\nand a line"),
        ("acme/math-pack 1.0 at https://registry.example has 3 tokens.",) * 2,
        ("Bearer of bad news", "Bearer *** bad news"),  # rather too much than too little
    ],
)
def test_what_looks_like_a_secret_is_blotted_out(text: str, shown: str) -> None:
    assert presentable(text) == shown


def test_a_secret_that_is_known_is_blotted_out_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLHUB_TOKEN_CORP", "corp-5ecret")
    monkeypatch.setenv("HF_TOKEN", "ambient-5ecret")
    hide("two-5ecrets\nin-lines")
    hide(None)
    hide("word")  # too short to be one
    text = "ab corp-5ecret, x'ambient-5ecret', b'two-5ecrets\\nin-lines', a word"
    assert presentable(text) == "ab ***, x'***', b'***\\n***', a word"


def test_a_registry_does_not_show_its_secrets() -> None:
    registry = hub.Registry("corp", f"https://ann:{MARK}pass@registry.example/hub", f"{MARK}token")
    assert repr(registry) == str(registry) == "Registry('corp', 'https://registry.example/hub')"
    assert registry.authorization == {"Authorization": f"Bearer {MARK}token"}


@pytest.mark.parametrize("token", [f"{MARK}\nX-Evil: 1", f" {MARK}", f"{MARK}é", "\x00"])
def test_a_token_that_fits_no_header_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(UsageError, match="has a line break or another character") as caught:
        hub.Registry("hub", "https://registry.example", token)
    assert MARK not in caught.value.message + caught.value.hint


def test_causes_tracebacks_and_json_are_shown_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    def cause() -> Exception:
        return ValueError(f"http://ann:{MARK}@host said Bearer {MARK}")

    for as_json in (False, True):
        error = NetworkError("It broke.", hint=f"See http://{MARK}@host.", where=f"http://{MARK}@host", cause=cause())
        error.__cause__ = cause()
        console.report(error, as_json=as_json, with_cause=True)
        console.report_internal(cause(), as_json=as_json, with_cause=True)
    console.say(f"waiting for http://{MARK}@host")
    printed = capsys.readouterr()
    assert MARK not in printed.out + printed.err
    assert "http://***@host" in printed.out and "ValueError: http://***@host said Bearer ***" in printed.err
    assert [json.loads(line)["schema"] for line in printed.out.splitlines()] == [0, 0]


def test_a_table_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["Pack", "For"], [["acme/x\x1b]0;title\x07", "Bearer \u202eof\x9b2J [red]news"]])
    printed = capsys.readouterr().out
    assert "acme/x\ufffd]0;title\ufffd" in printed and "Bearer \ufffdof\ufffd2J [red]news" in printed


def test_logs_of_other_libraries_are_shown_without_secrets(tmp_path: Path) -> None:
    script = f"""
import logging
from skillhub.cli import console
logging.basicConfig(level=logging.DEBUG)
console.guard_logs()
log = logging.getLogger("httpx2")
log.info("HTTP Request: %s %s", "GET", "http://ann:{MARK}@host/x")
log.debug("%d items and no argument")
try:
    raise ValueError("Bearer {MARK}")
except ValueError:
    log.exception("failed: %(x)s", {{"x": "hf_{MARK}"}})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    shown = [line for line in done.stderr.splitlines() if MARK in line and not line.startswith("    ")]
    assert shown == [], done.stderr  # the traceback shows lines of this script, which are no file
    assert "GET http://***@host/x" in done.stderr and "ValueError: Bearer ***" in done.stderr


@pytest.fixture
def pack(shell: Shell) -> Path:
    return make_pack(shell.home / "pack", "secret-pack").folder


Setting = Callable[[Shell, RegistryProcess], tuple[Shell, dict[str, str], list[str]]]
"""Makes of a user's shell one with a marked secret: the shell, more variables, more arguments."""


def password(shell: Shell, registry: RegistryProcess) -> tuple[Shell, dict[str, str], list[str]]:
    return replace(shell, endpoint=registry.endpoint.replace("://", f"://ann:{MARK}@")), {}, []


def password_of_nobody(shell: Shell, registry: RegistryProcess) -> tuple[Shell, dict[str, str], list[str]]:
    return replace(shell, endpoint=f"http://ann:{MARK}@127.0.0.1:9"), {}, []


def wrong_token(shell: Shell, registry: RegistryProcess) -> tuple[Shell, dict[str, str], list[str]]:
    return replace(shell, token=f"hf_{MARK}"), {}, []


def own_token(shell: Shell, registry: RegistryProcess) -> tuple[Shell, dict[str, str], list[str]]:
    return replace(shell, token=None), {}, ["--token", f"x-{MARK}"]


def broken_token(shell: Shell, registry: RegistryProcess) -> tuple[Shell, dict[str, str], list[str]]:
    return replace(shell, token=None), {}, [f"--token={MARK}\nand more {MARK}"]


def broken_variable(shell: Shell, registry: RegistryProcess) -> tuple[Shell, dict[str, str], list[str]]:
    return replace(shell, token=f"{MARK}\nHost: {MARK}\x07é"), {}, []


def usage(shell: Shell, registry: RegistryProcess) -> tuple[Shell, dict[str, str], list[str]]:
    return shell, {}, ["--token", MARK, MARK, "--no-such-option"]


def usage_with_a_slip(shell: Shell, registry: RegistryProcess) -> tuple[Shell, dict[str, str], list[str]]:
    return shell, {}, [f"--tokne=hf_{MARK}"]


def registry_option(shell: Shell, registry: RegistryProcess) -> tuple[Shell, dict[str, str], list[str]]:
    return shell, {}, ["--registry", f"http://ann:{MARK}@127.0.0.1:9"]


SETTINGS: list[Setting] = [
    *(password, password_of_nobody, wrong_token, own_token, broken_token, broken_variable),
    *(usage, usage_with_a_slip, registry_option),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
@pytest.mark.parametrize("command", ["install", "publish"])
def test_no_command_shows_a_secret(
    setting: Setting, command: str, shell: Shell, registry: RegistryProcess, pack: Path
) -> None:
    user, variables, options = setting(shell, registry)
    arguments = ["install", "nobody/nothing", "--base", BASE] if command == "install" else ["publish", "pack", "me/x"]
    loud = {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug", "PYTHONWARNINGS": "default", "PYTHONASYNCIODEBUG": "1"}
    for more in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "skillhub", *arguments, *options, "--verbose", *more],
            env=user.variables | loud | variables,
            cwd=user.home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode not in (0, 70), done.stdout + done.stderr
        assert MARK not in done.stdout + done.stderr
    written = [path for path in user.home.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()]
    assert written == []
    assert MARK not in "".join(map(str, user.home.rglob("*")))


def test_a_registry_learns_versions_and_no_more(tmp_path: Path) -> None:
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            heard.append(self.headers["User-Agent"])
            self.send_error(404)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        Shell(tmp_path, f"http://127.0.0.1:{server.server_port}").fail(4, "install", "acme/x", "--base", BASE)
        server.shutdown()
        thread.join()
    words = {word.partition("/")[0] for agent in heard for word in agent.split("; ")}
    assert heard and words <= {"skillhub", "unknown", "hf_hub", "python"}


def test_the_log_has_a_place_for_everyone_and_says_nothing_by_itself() -> None:
    handlers = logging.getLogger("skillhub").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)
