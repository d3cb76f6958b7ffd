"""The real command ``customized-grpo studio`` in a process of its own, and a headless browser to look at it.

The process notes every address outside of this machine that it looks up or connects to.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runs import environment

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STARTS_IN_S = 240.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0")
_NOTED = "STUDIO_NOTED"


class Server:
    """The command, once it answers."""

    def __init__(self, folder: Path, *words: str, slow_s: float = 0.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self.noted = folder / "studio.log", folder / "noted"
        more = {_NOTED: str(self.noted), "TINY_RUN_SLOW_S": str(slow_s)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "studio", *words, "--port", "0"],
                env=environment(**more),
                stdout=log,
                stderr=log,
            )
        give_up = time.monotonic() + STARTS_IN_S
        while "studio at " not in self.log.read_text():
            if time.monotonic() > give_up or self.process.poll() is not None:
                self.process.kill()
                raise AssertionError(self.log.read_text())
            time.sleep(0.1)
        self.url = self.log.read_text().partition("studio at ")[2].split()[0]

    def stop(self) -> int:
        """Ctrl-C; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def asked_elsewhere(self) -> list[str]:
        """Addresses outside of this machine."""
        return self.noted.read_text().splitlines() if self.noted.is_file() else []


class Watched:
    """A page of the browser, and all that it complains of or asks elsewhere."""

    def __init__(self, context: Any, url: str) -> None:
        self.complaints: list[str] = []
        self.page = context.new_page()
        self.page.set_default_timeout(60_000)
        # Gradio's own, when the progress of an upload is over
        self.page.on("console", lambda one: one.text == "Method not implemented." or self._console(one))
        self.page.on("pageerror", lambda one: self.complaints.append(f"error: {one}"))
        self.page.on("request", self._request)
        self.page.goto(url)
        self.page.wait_for_selector("#go")

    def _console(self, message: Any) -> None:
        self.complaints.append(f"{message.type}: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.complaints.append(f"asked for {request.url}")

    def draw(self, pictures: int) -> None:
        """Press the button, and wait for so many pictures."""
        self.watch()
        self.page.click("#go")
        self.wait_for(pictures)

    def watch(self) -> None:
        """Note from now on whether a drawing is told of: the result of the one before may be there still."""
        self.page.evaluate("""() => {
            window.told = false;
            const said = document.querySelector("#said");
            const look = () => { window.told ||= said.innerText.includes("draws seed"); };
            new MutationObserver(look).observe(said, { childList: true, subtree: true, characterData: true });
        }""")

    def wait_for(self, pictures: int) -> None:
        """Wait for the end of the drawing that began since ``watch``, and for so many pictures."""
        self.page.wait_for_function("window.told && document.querySelector('#said').innerText.includes('Drawn in')")
        self.page.wait_for_function(f"document.querySelectorAll('#results .grid-container img').length == {pictures}")

    def sources(self) -> list[str]:
        """Addresses of the drawn pictures, which say their content: Gradio names files after it."""
        images = self.page.query_selector_all("#results .grid-container img")
        return [str(one.get_attribute("src")) for one in images]


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; without one the test is skipped."""
    if CHROMIUM is None:
        pytest.skip("needs a Chromium (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in {"socket.connect", "socket.getaddrinfo"}:
        return
    address = arguments[1] if event == "socket.connect" else arguments
    host = address[0] if isinstance(address, tuple) else None
    if isinstance(host, bytes):
        host = host.decode()
    if host is not None and host not in _LOOPBACK:
        with Path(os.environ[_NOTED]).open("a") as file:
            file.write(json.dumps([event, str(host)]) + "\n")


if __name__ == "__main__":
    sys.addaudithook(_note)
    from customized_grpo.commands.app import app

    app()
