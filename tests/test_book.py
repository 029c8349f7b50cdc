"""The book: built from the committed notebooks, and walked through without a network."""

import functools
import http.server
import subprocess
import sys
import threading
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

from helpers.config import FURTHER, NOTEBOOKS, ROOT

GITHUB = "https://github.com"
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1300, "height": 900}
LINKS = "links => links.map((link) => link.getAttribute('href'))"
ANCHORS = "elements => elements.map((element) => element.id)"
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


@pytest.fixture(scope="module")
def page(book, browser):
    """A page in a browser that reaches only the book; ``wrong`` is what it complained of."""
    _, address = book
    page = browser.new_page()
    page.wrong = []
    page.on("console", lambda m: page.wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("requestfailed", lambda request: page.wrong.append(request.url))
    page.route(lambda url: not url.startswith(address), lambda route: route.abort())
    yield page
    page.close()


@pytest.fixture(scope="module")
def walk(book, page):
    """What was found on each page of the book, by its name."""
    folder, address = book
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.html")]
    found = {}
    for name in sorted(name for name in names if not name.startswith("_static/")):
        page.wrong.clear()
        page.set_viewport_size(DESK)
        page.goto(address + name, wait_until="networkidle")
        links = page.locator("a[href]").evaluate_all(LINKS)
        about = {
            "links": [urldefrag(urljoin(page.url, link)) for link in links],
            "anchors": {"", *page.locator("[id]").evaluate_all(ANCHORS)},
            "nameless": page.locator("main img").evaluate_all(NAMELESS),
            "empty": page.locator("img").evaluate_all(EMPTY),
        }
        page.set_viewport_size(PHONE)
        found[name] = about | {"width": page.evaluate(WIDTH), "wrong": [*page.wrong]}
    return found


def test_every_page_is_whole_without_a_network_and_fits_a_phone(walk):
    assert {f"notebooks/{name}.html" for name in NOTEBOOKS + FURTHER} < {*walk}
    for name, about in walk.items():
        assert about["wrong"] == about["nameless"] == about["empty"] == [], name
        assert about["width"] <= PHONE["width"], name


def test_every_link_leads_to_something(book, walk):
    folder, address = book
    links = {(name, *link) for name, about in walk.items() for link in about["links"]}
    for name, target, anchor in links:
        if target.startswith(address):
            path = unquote(urlsplit(target).path).strip("/") or "index.html"
            assert (folder / path).is_file(), f"{name} links to {path}"
            if path in walk:
                assert unquote(anchor) in walk[path]["anchors"], f"{name}: {path}#{anchor}"
