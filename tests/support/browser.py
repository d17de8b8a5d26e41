"""A headless Chromium that tests look at pages with, by the DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_HIGH = 10


class Browser:
    """One tab of a browser that is running."""

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self._commands, self._answers = commands, answers
        self._last, self._tab = 0, ""
        self._rest = b""
        self._passed: list[str | None] = []  # events that came while something else was waited for
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._tab = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._tab:
            message["sessionId"] = self._tab
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        answer = self._wait("id", self._last)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def show(self, url: str, *, width: int, dark: bool = False, scripts: bool = True) -> None:
        """Load a page and wait until it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._passed.clear()
        self.call("Page.navigate", url=url)
        if "Page.loadEventFired" not in self._passed:
            self._wait("method", "Page.loadEventFired")

    def take_cookie(self, url: str, name: str, value: str | None) -> None:
        """Have the browser send a cookie to an address from now on, and no other; None for no cookie at all."""
        self.call("Network.clearBrowserCookies")
        if value is not None:
            self.call("Network.setCookie", url=url, name=name, value=value)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def take_picture(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _wait(self, key: str, value: object) -> dict[str, Any]:
        while True:
            while b"\0" not in self._rest:
                piece = os.read(self._answers.fileno(), 1 << 20)
                assert piece, "the browser ended"
                self._rest += piece
            message, _, self._rest = self._rest.partition(b"\0")
            document: dict[str, Any] = json.loads(message)
            if document.get(key) == value:
                return document
            self._passed.append(document.get("method"))


@contextmanager
def running_browser(program: str, folder: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile in a folder, yield a tab of it, and end it."""
    read_commands, write_commands = map(_lift, os.pipe())
    read_answers, write_answers = map(_lift, os.pipe())

    def place_pipes() -> None:
        os.dup2(read_commands, 3)
        os.dup2(write_answers, 4)

    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        [program, *options],
        preexec_fn=place_pipes,
        pass_fds=(3, 4),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_commands)
    os.close(write_answers)
    with os.fdopen(write_commands, "wb") as commands, os.fdopen(read_answers, "rb") as answers:
        try:
            yield Browser(commands, answers)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _lift(number: int) -> int:
    """Return the descriptor as one that is out of the way of 3 and 4."""
    lifted = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    os.close(number)
    return lifted
