"""Opens a page in headless Chromium through its DevTools pipe; nothing but the standard library."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip


def chromium() -> str | None:
    """Returns the browser's path, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """One tab.

    Attributes:
        messages: what the console, uncaught errors and the browser's log said.
        requests: addresses of all requests.
    """

    _read: int
    _write: int
    _session: str = ""
    _buffer: bytes = b""
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _loaded: int = 0
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def call(self, method: str, seconds: float = 60, **parameters: Any) -> Any:
        """Sends a command and returns its result."""
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + seconds
        while True:
            answer = self._receive(end)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(
        self, path: Path, width: int, height: int = 900, scheme: str = "light", script: bool = True
    ) -> None:
        """Loads a file at a width of so many CSS pixels and waits until it is there."""
        self.messages.clear()
        self.requests.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        loaded = self._loaded
        self.call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + 60
        while self._loaded == loaded:
            self._receive(end)
        self.value("new Promise(done => requestAnimationFrame(() => setTimeout(() => done(1), 50)))")

    def value(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Writes a PNG of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError("the browser does not answer")
            self._buffer += data
        raw, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(raw)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, parameters: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded += 1
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.messages.append(json.dumps(parameters))


@contextmanager
def browser() -> Iterator[Page]:
    """Starts Chromium with one empty tab, and ends it."""
    program = chromium()
    assert program is not None
    to_child, ours_out = os.pipe()
    ours_in, from_child = os.pipe()
    # The child's ends have to be its descriptors 3 and 4: keep all of ours clear of those.
    ends = [
        fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
        for descriptor in (to_child, from_child, ours_in, ours_out)
    ]
    for descriptor in (to_child, from_child, ours_in, ours_out):
        os.close(descriptor)

    def place() -> None:
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *SWITCHES, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place,  # noqa: PLW1509
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ends[0])
        os.close(ends[1])
        page = Page(ends[2], ends[3])
        try:
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page._session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            yield page
            page._session = ""
            page.call("Browser.close")
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            os.close(ends[2])
            os.close(ends[3])
