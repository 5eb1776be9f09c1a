"""The status page in Chromium: what a person sees, light and dark, narrow and wide."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from prometheus_client import CollectorRegistry

from server.config import ServerConfig
from server.identity import files
from server.identity.identities import Identities
from server.listening.exposition import Exposition
from server.status.findings import Parts, Phase
from server.status.site import Site
from tests.server.status.browser import Browser
from tests.server.status.night import HOSTILE, Night

PICTURES = Path(__file__).parents[3] / "artifacts" / "status-page"
SHOWN = "!document.getElementById('told').hidden"
SIZES = {"narrow": (360, 740), "wide": (1920, 1080)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@contextlib.contextmanager
def exposed(night: Night, admin: Identities | None = None) -> Iterator[tuple[str, Exposition]]:
    site = Site(CollectorRegistry(), night, admin or Identities())  # type: ignore[arg-type]
    exposition = Exposition(site)
    try:
        yield f"http://127.0.0.1:{exposition.serve('127.0.0.1', 0)}/", exposition
    finally:
        exposition.stop()


@pytest.mark.parametrize("is_bad", [False, True], ids=["calm", "overloaded"])
@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_every_screen_and_complains_of_nothing(
    browser: Browser, is_bad: bool, size: str, look: str
) -> None:
    """Nothing is wider than the window, but within a part that scrolls by itself."""
    story = "#" + urlencode({"request_id": HOSTILE, "tenant": HOSTILE})
    width, height = SIZES[size]
    with exposed(Night(is_bad)) as (url, _):
        browser.open(url + story, width, height, is_dark=look == "dark")
        browser.until(f"{SHOWN} && document.querySelector('#story table') !== null")
        browser.picture(PICTURES / f"{'overloaded' if is_bad else 'calm'}-{size}-{look}.png")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("innerWidth") == width
        assert browser.complaints == []


def test_what_callers_chose_is_shown_and_never_taken_for_markup(browser: Browser) -> None:
    with exposed(Night(is_bad=True)) as (url, _):
        browser.open(url, 1280, 900)
        browser.until(SHOWN)
        links = browser.evaluate("document.querySelectorAll('#decisions a.id').length")
        assert links == 12
        browser.evaluate("document.querySelectorAll('#decisions a.id')[1].click()")
        browser.until("document.querySelector('#story table') !== null")
        assert HOSTILE in browser.evaluate("document.querySelector('#story .summary').textContent")
        assert browser.evaluate("document.forms[0].elements.request_id.value") == HOSTILE
        assert browser.evaluate("document.images.length") == 0
        assert "machine slow: 43 %" in browser.evaluate("document.title")
        assert browser.complaints == []


def test_with_a_token_single_requests_are_shown_once_it_is_typed(
    browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("a-word-that-nobody-guesses")
    path.chmod(0o600)
    shown = "document.querySelectorAll('#decisions li').length"
    with exposed(
        Night(is_bad=True), Identities(files.read(ServerConfig(admin_token_file=path)))
    ) as (url, _):
        browser.open(url + "#request_id=a", 1280, 900)
        browser.until("document.querySelector('#story .failed') !== null")
        browser.until(SHOWN)
        assert browser.evaluate(shown) == 0
        assert browser.evaluate("at('token').hidden") is False
        browser.evaluate("form.elements.token.value = 'a-word-that-nobody-guesses'; void poll()")
        browser.until(f"{shown} === 12")
        browser.evaluate("void explain()")
        browser.until("document.querySelector('#story table') !== null")
        assert "Late: " in browser.evaluate("document.querySelector('#story .summary').textContent")


def test_the_page_says_when_the_server_does_not_answer_and_when_it_does_again(
    browser: Browser,
) -> None:
    line = "document.querySelector('#state .line').textContent"
    with exposed(Night(is_bad=False)) as (url, exposition):
        browser.open(url, 1280, 900)
        browser.until(f"{line} === 'all on time'")
        exposition.stop()
        browser.evaluate("answeredAt -= 60000; void poll()")  # for that long
        browser.until(f"{line}.startsWith('the server does not answer since')")
        exposition.serve("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))
        browser.evaluate("void poll()")
        browser.until(f"{line} === 'all on time'")


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (Parts(Phase.STARTING, serving=0), "no engine yet: it is starting"),
        (Parts(Phase.LOST, "signal 9", serving=0), "no engine"),
        (Parts(Phase.SILENT, serving=0), "the engine gives no sign of life"),
        (Parts(Phase.DRAINING), "draining: no new calls are taken"),
    ],
)
def test_the_first_line_says_what_is_down(browser: Browser, parts: Parts, line: str) -> None:
    with exposed(Night(is_bad=False, parts=parts)) as (url, _):
        browser.open(url, 1280, 900)
        browser.until(SHOWN)
        assert browser.evaluate("document.querySelector('#state .line').textContent") == line
