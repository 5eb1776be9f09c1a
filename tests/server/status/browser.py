"""Headless Chromium, told by the DevTools protocol what to open, how wide and how dark.

It speaks over a pipe (--remote-debugging-pipe): messages of JSON that end with a NUL byte. See
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import time
from pathlib import Path
from typing import Any

from tests.loadgen.chromium import chromium

LIMIT_S = 120.0
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-proxy-server",
    "--remote-debugging-pipe",
)
_COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


class Browser:
    """One Chromium with one page, for as long as the `with` block. `complaints` is what its console
    has got since the page was opened, whatever the level.
    """

    def __init__(self, profile: Path) -> None:
        """`profile` is an empty folder. Skips the test where there is no Chromium."""
        path = chromium()
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, null, each) for each in (0, 1, 2)]
        # By way of two that are surely neither 3 nor 4, which are the protocol's.
        spare = [os.dup(null) for _ in range(8)]
        actions += [
            (os.POSIX_SPAWN_DUP2, theirs_in, spare[-2]),
            (os.POSIX_SPAWN_DUP2, theirs_out, spare[-1]),
        ]
        actions += [(os.POSIX_SPAWN_DUP2, spare[-2], 3), (os.POSIX_SPAWN_DUP2, spare[-1], 4)]
        command = [path, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._pid = os.posix_spawn(path, command, os.environ, file_actions=actions)
        for each in (theirs_in, theirs_out, null, *spare):
            os.close(each)
        self._in, self._out = ours_in, ours_out
        self._data = b""
        self._number = 0
        self._session: dict[str, str] = {}
        self.complaints: list[str] = []

    def __enter__(self) -> Browser:
        (target, *_) = [
            each for each in self.tell("Target.getTargets")["targetInfos"] if each["type"] == "page"
        ]
        found = self.tell("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": found["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.tell(f"{domain}.enable")
        return self

    def __exit__(self, *error: object) -> None:
        os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        """Returns the result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            if answer["method"] in _COMPLAINTS:
                self.complaints.append(json.dumps(answer["params"]))
        assert "error" not in answer, answer
        return dict(answer["result"])

    def open(self, url: str, width: int, height: int, *, is_dark: bool = False) -> None:
        """Opens a page in a window of that size, in CSS pixels."""
        self.tell("Page.navigate", url="about:blank")
        self.complaints.clear()
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[scheme])
        self.tell("Page.navigate", url=url)
        self.until("location.protocol === 'http:' && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Returns what JavaScript in the page makes of it, promises awaited."""
        told = self.tell(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, expression: str) -> Any:
        """Looks until that is true."""
        until = time.monotonic() + LIMIT_S
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < until, (
                f"never {expression}: {self.evaluate('document.body.innerText')}"
            )
        return value

    def picture(self, path: Path) -> None:
        """Keeps a picture of the whole page."""
        shot = self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _read(self) -> dict[str, Any]:
        """Returns the next message."""
        while b"\0" not in self._data:
            readable, _, _ = select.select([self._in], [], [], LIMIT_S)
            assert readable, "Chromium says nothing"
            more = os.read(self._in, 1 << 20)
            assert more, "Chromium has ended"
            self._data += more
        message, _, self._data = self._data.partition(b"\0")
        return dict(json.loads(message))
