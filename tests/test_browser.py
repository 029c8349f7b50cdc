"""The notebooks in JupyterLab: opened in a browser, Run All chosen in the menu, and looked at.

JupyterLab serves a copy of them without outputs, on the smoke preset and with settings of its own.
They go on with the run of the notebooks' other tests, or begin it: the models are trained once.
A picture of each notebook is kept in ``build/browser/``, for what only an eye can judge.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from typing import Any, NamedTuple

import nbformat
import psutil
import pytest
from PIL import Image
from playwright.sync_api import expect

from helpers.config import NOTEBOOKS, ROOT

READ = ("notebooks", "helpers", "results", "README.md")  # by the notebooks
PICTURES = ROOT / "build" / "browser"
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {
        "windowingMode": "none",  # all cells are drawn, those out of sight too
        "scrollPastEnd": False,
    },
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
}
SERVER_START, PAGE_START, RUN_ALL, ANSWER = 60, 60, 600, 30  # seconds, after which it has failed

# What is asked of the page. It shows prompts in brackets: a star while a cell waits or runs.
READY = """() => {
    const {shell, commands} = window.jupyterapp ?? {}, panel = shell?.currentWidget;
    if (!panel?.context?.isReady || !panel.sessionContext.isReady) return false;
    panel.sessionContext.session?.kernel?.info.then(() => { window.kernelAnswers = true; });
    return window.kernelAnswers && commands.label("runmenu:run-all") === "Run All Cells";
}"""
FINISHED = """() => {
    const state = document.querySelector(".jp-Notebook-ExecutionIndicator").dataset.status;
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")];
    const text = prompts.map((prompt) => prompt.textContent).join();
    return state === "idle" && /[0-9]/.test(text) && !text.includes("*");
}"""
LOADED = "() => [...document.images].every((image) => image.complete)"
MODEL = "() => JSON.stringify(jupyterapp.shell.currentWidget.content.model.toJSON())"
DRAWN = """() => [...document.querySelectorAll(".jp-OutputArea-output img")]
    .filter((image) => image.naturalWidth > 100).length"""
HEIGHT = "() => document.querySelector('.jp-WindowedPanel-outer').scrollHeight"
WHOLE = """() => {
    const outer = document.querySelector(".jp-WindowedPanel-outer");
    outer.scrollTop = 0;
    return outer.clientHeight >= outer.scrollHeight;
}"""


class Opened(NamedTuple):
    """A notebook that was run, in its page."""

    name: str
    page: Any
    code: list  # its code cells, as the page's model of the notebook has them

    def outputs(self, *kinds: str) -> list:
        found = [output for cell in self.code for output in cell.outputs]
        return [output for output in found if output.output_type in kinds]


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of JupyterLab, and the token that it asks for."""
    folder = tmp_path_factory.mktemp("lab")
    served, own = folder / "served", folder / "own"
    served.mkdir()
    for name in READ:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, served / name)
    for path in (served / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    (own / "config" / "labconfig").mkdir(parents=True)
    overrides = own / "config" / "labconfig" / "default_setting_overrides.json"
    overrides.write_text(json.dumps(SETTINGS))
    environment = os.environ | {
        "MATRYOSHKA_PRESET": "smoke",
        "JUPYTER_CONFIG_DIR": str(own / "config"),
        "JUPYTER_DATA_DIR": str(own / "data"),
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
        "IPYTHONDIR": str(own / "ipython"),
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token, log = secrets.token_hex(), folder / "lab.log"
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": served,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True,
        "LabApp.extension_manager": "readonly",
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{k}={v}" for k, v in options.items())]
    with log.open("w") as file:
        server = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    until = time.monotonic() + SERVER_START
    try:
        while not answers(port):
            assert server.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", token
    finally:  # its kernels are in process groups of their own
        if server.poll() is None:
            family = psutil.Process(server.pid).children(recursive=True)
            server.terminate()
            for process in psutil.wait_procs([*family, psutil.Process(server.pid)], timeout=15)[1]:
                process.kill()
            server.wait()


@pytest.fixture(scope="module", params=NOTEBOOKS)
def notebook(request, browser, lab):
    """Each notebook after Run All. They build on each other, and go through the tests in order."""
    (address, token), name = lab, request.param
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(ANSWER * 1000)
    try:
        page.goto(f"{address}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?token={token}")
        page.wait_for_function(READY, timeout=PAGE_START * 1000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator(".lm-Menu").get_by_text("Run All Cells", exact=True).click()
        page.wait_for_function(FINISHED, timeout=RUN_ALL * 1000)
        page.wait_for_function(LOADED)
        cells = nbformat.reads(page.evaluate(MODEL), as_version=4).cells
        yield Opened(name, page, [cell for cell in cells if cell.cell_type == "code"])
        allowed = {"headers": {"Authorization": f"token {token}"}}
        for session in page.request.get(f"{address}/api/sessions", **allowed).json():
            page.request.delete(f"{address}/api/sessions/{session['id']}", **allowed)
    finally:
        page.close()


def test_every_cell_ran_in_order_without_an_error_or_a_warning(notebook):
    errors = [output.evalue for output in notebook.outputs("error")]
    assert errors == []
    assert [cell.execution_count for cell in notebook.code] == [*range(1, len(notebook.code) + 1)]
    said = [output.text for output in notebook.outputs("stream") if output.name == "stderr"]
    assert [text for text in said if "warning" in text.lower()] == []
    for sign in (".jp-Dialog", ".Toastify__toast--error"):
        assert notebook.page.locator(sign).all_inner_texts() == []


def test_every_figure_is_drawn_and_says_in_words_what_it_shows(notebook):
    shown = notebook.outputs("display_data", "execute_result")
    figures = [output for output in shown if "image/png" in output.data]
    assert notebook.page.evaluate(DRAWN) == len(figures)
    # JupyterLab keeps the text, but does not hand it to the picture; nbconvert's classic does.
    said = [output.metadata.get("image/png", {}).get("alt", "") for output in figures]
    assert [text for text in said if not text.strip()] == []


def test_the_whole_notebook_makes_a_picture(notebook):
    page, path = notebook.page, PICTURES / f"{notebook.name}.png"
    page.set_viewport_size({"width": 1300, "height": page.evaluate(HEIGHT) + 200})
    page.wait_for_function(WHOLE)
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator(".jp-WindowedPanel-outer").screenshot(path=path)
    with Image.open(path) as picture:
        assert picture.width > 600
        assert picture.height > 3000
        for top in range(0, picture.height - 1000, 1000):  # none of it is blank
            part = picture.crop((0, top, picture.width, top + 1000))
            assert part.getcolors(maxcolors=20) is None, f"few colours below {top}"


def test_the_slider_answers_to_the_keyboard(notebook):
    box = notebook.page.locator(".widget-interact")
    expect(box).to_have_count(int(notebook.name == "05_evaluation"))
    if box.count():
        table, patience = box.locator("table"), {"timeout": ANSWER * 1000}
        before = table.inner_text()
        box.get_by_role("slider").press("Home")
        expect(table).not_to_have_text(before, use_inner_text=True, **patience)
        shortest = table.inner_text()
        query = box.locator("input[type=text]")
        query.fill("a river in the mountains")
        query.press("Enter")
        expect(table).not_to_have_text(shortest, use_inner_text=True, **patience)
