"""A notebook in JupyterLab in a real browser: start, open, run, read, act, keep pictures."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PICTURES = Path(__file__).resolve().parents[1] / "runs" / "browser"
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--use-gl=angle",
         "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # fmt: skip


def settings(folder: Path, *, dark: bool) -> None:
    """Every cell drawn at once, no news, one theme."""
    files = {
        "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
        "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "@jupyterlab/apputils-extension/kernels-settings": {"kernelInfoTimeout": 60_000},  # a busy machine
        "@jupyterlab/apputils-extension/themes": {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"},
    }
    for name, value in files.items():
        path = folder / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))


def free_port() -> int:
    """A port that nobody on this machine uses just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def jupyterlab(folder: Path, *, dark: bool = False) -> Iterator[str]:
    """JupyterLab on `folder`, on this machine alone; yields its address."""
    settings(folder / ".settings", dark=dark)
    port = free_port()
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0",
        "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    surroundings = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings")}
    address = f"http://127.0.0.1:{port}"
    with served(command, address, folder / "server.log", surroundings):
        yield address


@contextmanager
def served(command: list[str], address: str, log: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """A server that answers at `address`, ended afterwards."""
    with open(log, "w") as written:
        server = subprocess.Popen(command, env=environment, stdout=written, stderr=written)
        try:
            _wait_for(address, server, log)
            yield
        finally:
            server.terminate()
            server.wait(20)


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended at once: {log.read_text()[-2_000:]}")
        try:
            urllib.request.urlopen(f"{address}/api", timeout=2).close()
            return
        except urllib.error.HTTPError:  # it answers, only not here
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError("the server did not answer within two minutes")


class NotebookPage:
    """One open notebook. `page` is playwright's; explorers are found by their title."""

    def __init__(self, page, address: str, name: str):
        self.page = page
        page.goto(f"{address}/lab/tree/{name}?reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=120_000)
        # the status bar names the kernel only once the page talks to it; run before that, JupyterLab asks for a kernel
        page.wait_for_selector(".jp-StatusBar-TextItem:has-text('| Idle')", timeout=180_000)
        page.keyboard.press("Control+b")  # the side bar takes room

    def run_all(self, *, seconds: float = 240) -> None:
        """Run every cell and wait for the last; AssertionError when one fails or hangs."""
        self.start()
        self.finish(seconds=seconds)

    def start(self) -> None:
        """Run every cell, none of which has run before; do not wait. AssertionError when no cell begins."""
        for _ in range(3):  # a click on a menu that is drawn anew at that moment is lost
            self.page.get_by_role("menuitem", name="Run", exact=True).click()
            self.page.locator("#jp-mainmenu-run").get_by_text("Run All Cells", exact=True).click()
            for _ in range(20):
                if any(prompt != "[ ]:" for prompt in self.prompts()):
                    return
                time.sleep(0.5)
        raise AssertionError(f"no cell began to run; the page is in {self.keep('not_begun')}: {self.prompts()}")

    def prompts(self) -> list[str]:
        """What stands beside each code cell: "[ ]:" before, "[*]:" while it waits or runs, "[3]:" after."""
        return self.page.eval_on_selector_all(".jp-CodeCell .jp-InputPrompt", "all => all.map(x => x.textContent)")

    def finish(self, *, seconds: float = 240) -> None:
        """Wait for the last cell."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            prompts = self.prompts()
            if prompts and all(any(c.isdigit() for c in prompt) for prompt in prompts):
                break
            assert not self.errors(), self.errors()
            time.sleep(0.5)
        else:
            raise AssertionError(f"still running after {seconds:g} s: {prompts}")
        assert not self.errors(), self.errors()

    def errors(self) -> list[str]:
        """Texts of error outputs on the page."""
        kind = "application/vnd.jupyter.error"
        return self.page.locator(f".jp-OutputArea-output[data-mime-type='{kind}']").all_inner_texts()

    def explorer(self, title: str):
        """The living explorer with this title."""
        return self.page.locator(".medvlp-explorer", has=self.page.locator("h4", has_text=title)).first

    def until(self, explorer, holds, *, seconds: float = 20) -> str:
        """The explorer's text as soon as `holds(text)`; AssertionError with the text when it never does."""
        for _ in range(600):  # its cell may not have run yet
            assert not self.errors(), self.errors()
            if explorer.count():
                break
            time.sleep(0.5)
        else:
            raise AssertionError(f"the explorer never came; the page is in {self.keep('missing')}: {self.prompts()}")
        end, text = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            text = explorer.inner_text()
            if holds(text):
                return text
            time.sleep(0.05)
        raise AssertionError(f"the explorer did not change as expected; it says: {text[:1_500]}")

    def keep(self, name: str, explorer=None) -> Path:
        """A picture of an explorer, or of the page, under runs/browser."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        path = PICTURES / f"{name}.png"
        if explorer is None:
            self.page.screenshot(path=str(path))
        else:
            explorer.scroll_into_view_if_needed()
            explorer.screenshot(path=str(path))
        return path
