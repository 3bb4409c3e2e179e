"""Drives the system's Chromium over a pipe (Chrome DevTools Protocol); no driver program, no port."""

from __future__ import annotations

import base64
import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

__all__ = ["Tab", "chromium", "opened", "skip_without_chromium"]

_PATIENCE_S = 60.0
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """The browser's program; "" where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name)) is not None), "")


def skip_without_chromium() -> None:
    """Skips the module that calls it where there is no browser, unless TXBUS_REQUIRE_BROWSER=1."""
    if not chromium() and os.environ.get("TXBUS_REQUIRE_BROWSER") != "1":
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed", allow_module_level=True)


class Tab:
    """One page of a running browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to = to_browser
        self._from = from_browser
        self._rest = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []
        """What the browser told unasked: errors of the page, requests it made."""

    def attach(self) -> None:
        """Make the tab and listen to it."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer. AssertionError for an error or no answer in a minute."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def wait_for(self, event: str) -> None:
        """Until the browser has told an event; those told before count."""
        while not any(one["method"] == event for one in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        deadline_s = time.monotonic() + _PATIENCE_S
        while b"\0" not in self._rest:
            with selectors.DefaultSelector() as selector:
                selector.register(self._from, selectors.EVENT_READ)
                assert selector.select(max(0.0, deadline_s - time.monotonic())), "the browser does not answer"
            part = os.read(self._from, 1 << 16)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(
        self, url: str, *, width: int = 1_280, height: int = 900, scheme: Literal["light", "dark"] = "light"
    ) -> None:
        """Load a page as a window of this size sees it, and wait until it is there."""
        mobile = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        # A change of the fragment alone would load nothing.
        for address in ("about:blank", url):
            self.events.clear()
            self.ask("Page.navigate", url=address)
            self.wait_for("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What an expression of the page's language comes to. AssertionError if it throws."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element, as a person does."""
        x, y = self.value(
            f"""(() => {{
                const found = document.querySelector({json.dumps(selector)});
                found.scrollIntoView({{block: "center"}});
                const box = found.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def press(self, key: str) -> None:
        """Press and release a key, such as ``ArrowRight`` or ``Enter``."""
        codes = {"Enter": 13, "Tab": 9, "Home": 36, "End": 35}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text)
        self.settle()

    def settle(self) -> None:
        """Until what the last input caused was drawn."""
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def screenshot(self, file: Path) -> None:
        """The whole page, as far as it can be scrolled."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(answer["data"]))

    def complaints(self) -> list[str]:
        """Errors of the page since it was opened: exceptions, refused scripts, warnings of the browser."""
        self.value("1")
        bad = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(one["params"]) for one in self.events if one["method"] in bad]

    def requests(self) -> list[str]:
        """The addresses that the page asked for since it was opened."""
        self.value("1")
        return [one["params"]["request"]["url"] for one in self.events if one["method"] == "Network.requestWillBeSent"]


@contextmanager
def opened(folder: Path) -> Iterator[Tab]:
    """A tab of a browser of its own; ``folder`` takes what the browser writes."""
    program = chromium()
    assert program, f"TXBUS_REQUIRE_BROWSER=1, and none of {', '.join(_NAMES)} is installed"
    read_by_it, to_it = os.pipe()
    from_it, written_by_it = os.pipe()
    arguments = [
        program,
        "--headless=new",
        "--remote-debugging-pipe",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-extensions",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--hide-scrollbars",
        f"--user-data-dir={folder}",
        "about:blank",
    ]
    # The browser reads from descriptor 3 and writes to descriptor 4.
    shell = f'exec "$@" 3<&{read_by_it} 4>&{written_by_it}'
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", shell, "browser", *arguments],
            pass_fds=(read_by_it, written_by_it),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    os.close(read_by_it)
    os.close(written_by_it)
    try:
        tab = Tab(to_it, from_it)
        tab.attach()
        yield tab
    finally:
        os.close(to_it)
        os.close(from_it)
        try:
            # With its pipe closed the browser ends by itself.
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
