"""The walkthrough as a reader meets it: JupyterLab in a browser, whole pages run, sliders turned, languages changed.

What other tests of the widgets cannot see is whether a browser draws them. A Chromium of the machine is driven, none is
downloaded; where one is missing, or what `make lab` installs, these tests are skipped.
"""

import base64
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from dsv3.learn import pages
from tests.conftest import ROOT

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed; `make lab` and `make test-browser` install it")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; `make test-browser` does")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(BROWSER is None, reason=f"there is no browser: none of {', '.join(NAMES)} is on the PATH"),
]

PATIENCE = 90
"""Seconds to wait for anything at all. A step takes one to six on an idle machine."""

CHAPTER = "09_scale_and_cost"
"""A chapter with an ``explore`` that runs in seconds."""

# It never asks the network, and it ends by itself where this process was killed before it could end it.
OPTIONS = """--no-browser --allow-root --expose-app-in-browser --ip=127.0.0.1 --port=0
    --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate
    --MappingKernelManager.cull_idle_timeout=120 --MappingKernelManager.cull_interval=30
    --ServerApp.shutdown_no_activity_timeout=180""".split()

FOLDERS = (
    "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR",
    "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a JupyterLab with a copy of the notebooks, which it may save, and no settings of this user."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    own = {name: str(home / name) for name in FOLDERS}
    environment = {**os.environ, **own, "OMP_NUM_THREADS": "1"}
    token = secrets.token_hex(16)
    where = [f"--ServerApp.root_dir={home / 'notebooks'}", f"--IdentityProvider.token={token}"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *OPTIONS, *where],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield f"{_address(server, home, token)}lab/tree/{{path}}?token={token}"
    finally:
        server.terminate()  # it shuts its kernels down
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _address(server: subprocess.Popen[bytes], home: Path, token: str) -> str:
    """As the server writes it, once it answers."""
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        try:
            (file,) = (home / "JUPYTER_RUNTIME_DIR").glob("jpserver-*.json")
            address = json.loads(file.read_text(encoding="utf-8"))["url"]
            with urlopen(f"{address}api/status?token={token}", timeout=10):
                return address
        except (ValueError, URLError, TimeoutError):  # no file yet, half a file, no answer yet
            time.sleep(0.1)
    pytest.fail(f"JupyterLab did not start:\n{(home / 'log').read_text(encoding='utf-8')[-3000:]}")


class Reader:
    """A browser with one page of the book open."""

    def __init__(self, page: "playwright.Page", address: str) -> None:
        self.page, self.address = page, address

    def open(self, path: str) -> None:
        self.page.goto(self.address.format(path=path))
        self.wait_for(path)

    def wait_for(self, path: str) -> None:
        """Until the page at ``path`` is the one that is shown and its kernel waits for work."""
        self.page.wait_for_function(
            """path => {
                const shown = window.jupyterapp?.shell.currentWidget;
                return shown?.context?.path === path && shown.sessionContext.session?.kernel?.status === "idle";
            }""",
            arg=path,
        )

    def run(self) -> None:
        """Run all cells; fails where one ends in an error, or did not run."""
        self.page.evaluate(
            """() => {
                window.ran = false;
                jupyterapp.commands.execute("notebook:run-all-cells").then(() => { window.ran = true; });
            }"""
        )
        self.page.wait_for_function("window.ran")
        cells = self.page.evaluate(
            """() => jupyterapp.shell.currentWidget.content.widgets
                .filter(cell => cell.model.type === "code")
                .map(cell => [cell.model.id, cell.model.executionCount, cell.model.outputs.toJSON()])"""
        )
        problems = [f"{cell}: {o['ename']}: {o['evalue']}" for cell, _, all_of in cells for o in all_of if "ename" in o]
        assert problems == []
        assert [number for _, number, _ in cells] == list(range(1, len(cells) + 1))

    def go_to(self, code: str) -> "playwright.Locator":
        """The cell whose source has ``code``; the notebook draws only what is near the window."""
        self.page.evaluate(
            """async code => {
                const notebook = jupyterapp.shell.currentWidget.content;
                const found = notebook.widgets.findIndex(cell => cell.model.sharedModel.source.includes(code));
                notebook.activeCellIndex = found;
                await notebook.scrollToItem(found, "start");
            }""",
            code,
        )
        return self.notebook.locator(".jp-Cell.jp-mod-active")

    @property
    def notebook(self) -> "playwright.Locator":
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")

    def heading(self) -> str:
        return self.go_to("# ").locator("h1").inner_text().rstrip("¶")


@pytest.fixture
def reader(lab: str) -> Iterator[Reader]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--disable-dev-shm-usage"])
        try:
            page = browser.new_page(viewport={"width": 1200, "height": 1000})
            page.set_default_timeout(1000 * PATIENCE)
            yield Reader(page, lab)
            page.evaluate("window.jupyterapp?.serviceManager.sessions.shutdownAll()")
        finally:
            browser.close()


def title(language: str) -> str:
    page = pages.read(ROOT / "notebooks" / language / f"{CHAPTER}.ipynb")
    return page.cells[0].source.splitlines()[0].removeprefix("# ")


def png(source: str | None) -> bytes:
    found = re.fullmatch(r"data:image/png;base64,(.+)", source or "", re.S)
    assert found, f"no picture: {source!r:.80}"
    return base64.b64decode(found[1])


def position(slider: "playwright.Locator") -> float:
    return float(slider.get_attribute("aria-valuenow") or "nan")


def test_the_first_page_runs(reader: Reader) -> None:
    reader.open("en/00_tour.ipynb")
    reader.run()


@pytest.mark.parametrize("language", ["en", "es", "zh"])
def test_a_slider_turns_the_picture(reader: Reader, language: str) -> None:
    reader.open(f"{language}/{CHAPTER}.ipynb")
    assert reader.heading() == title(language)
    reader.run()
    cell = reader.go_to("learn.explore(")
    slider, turned = cell.get_by_role("slider").first, cell.locator(".widget-html-content:has(figure)")
    playwright.expect(slider).to_be_visible(timeout=1000 * PATIENCE)
    assert cell.locator(".jupyter-widgets-error-widget").count() == 0
    stood, before = position(slider), turned.locator("img").get_attribute("src")
    assert not turned.is_visible()  # it is the finished figure above, until the slider moves

    slider.press("ArrowRight")
    playwright.expect(turned, "the slider was moved, and no picture came").to_be_visible(timeout=20_000)
    reader.page.wait_for_function(
        "([turned, before]) => turned.querySelector('img').src !== before",
        arg=[turned.element_handle(), before],
        timeout=20_000,
    )
    assert position(slider) > stood
    picture = turned.locator("img")
    assert png(picture.get_attribute("src")) != png(before)
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    described = picture.get_attribute("alt")
    assert described
    assert turned.locator("figcaption").inner_text() == described


def test_the_languages_lead_to_one_another(reader: Reader) -> None:
    reader.open(f"en/{CHAPTER}.ipynb")
    for link, language in (("Español", "es"), ("中文", "zh"), ("English", "en")):
        reader.go_to("# ").get_by_role("link", name=link).click()
        reader.wait_for(f"{language}/{CHAPTER}.ipynb")
        assert reader.heading() == title(language)
