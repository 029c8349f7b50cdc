"""The book: built from the committed notebooks, and walked through without a network."""

import functools
import http.server
import subprocess
import sys
import threading

import pytest

from helpers.config import FURTHER, NOTEBOOKS, ROOT

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1300, "height": 900}
NAMELESS = "images => images.filter((image) => !image.alt).map((image) => image.outerHTML)"
EMPTY = "images => images.filter((image) => !image.naturalWidth).map((image) => image.src)"
WIDTH = "() => document.documentElement.scrollWidth"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def book():
    """The book's folder, and the address at which it's served."""
    command = [sys.executable, "-m", "tools.book"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = ROOT / "build" / "book"
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_every_page_is_whole_without_a_network_and_fits_a_phone(book, browser):
    folder, address = book
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*.html")]
    names = {name for name in paths if not name.startswith("_static/")}
    assert {f"notebooks/{name}.html" for name in NOTEBOOKS + FURTHER} < names
    page, wrong = browser.new_page(), []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.route(lambda url: not url.startswith(address), lambda route: route.abort())
    for name in sorted(names):
        page.set_viewport_size(DESK)
        page.goto(address + name, wait_until="networkidle")
        nameless = page.locator("main img").evaluate_all(NAMELESS)
        empty = page.locator("img").evaluate_all(EMPTY)
        assert wrong == nameless == empty == [], name
        page.set_viewport_size(PHONE)
        assert page.evaluate(WIDTH) <= PHONE["width"], name
    page.close()
