"""A page opened in headless Chromium: its document after its script ran, its console, a picture."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

LIMIT_S = 120.0
PICTURES = Path(__file__).parents[2] / "artifacts" / "html-report"
QUIET = (  # flags: nothing but the page
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_FLAGS = (*QUIET, "--window-size=1280,3600", "--enable-logging=stderr")
# Moves a pointer over every chart and notes what the box beside it says.
_PROBE = """
<script>
for (const figure of document.querySelectorAll("figure")) {
  const target = figure.querySelector(".chart rect[fill=transparent], .chart rect.bar");
  tip.replaceChildren();
  const area = target.getBoundingClientRect();
  const clientX = area.left + area.width / 2, clientY = area.top + area.height / 2;
  target.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
  figure.dataset.tip = tip.textContent;
  target.dispatchEvent(new PointerEvent("pointerleave"));
}
</script>
"""


class Opened(HTMLParser):
    """What Chromium made of a page."""

    def __init__(self, document: str, console: list[str]) -> None:
        super().__init__()
        self.console = console
        self.html: dict[str, str | None] = {}  # attributes of the root
        self.figures: list[dict[str, str | None]] = []  # attributes of each
        self.shapes: list[list[dict[str, str | None]]] = []  # paths and bars of each figure
        self.text = ""  # outside scripts and styles
        self._skipping = False
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self._skipping = tag in ("script", "style")
        if tag == "html":
            self.html = attributes
        elif tag == "figure":
            self.figures.append(attributes)
            self.shapes.append([])
        elif self.figures and tag in ("path", "rect") and attributes.get("class"):
            self.shapes[-1].append(attributes)

    def handle_endtag(self, tag: str) -> None:
        self._skipping = False

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self.text += data


def chromium() -> str:
    """The browser; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium here to open the page in (Debian: apt-get install chromium)")


def opened(page: Path, profile: Path) -> Opened:
    """Keeps a picture in artifacts/html-report/. `profile` is an empty folder."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    probed = page.with_name(f"probed-{page.name}")
    probed.write_text(page.read_text() + _PROBE)
    picture = PICTURES / f"{page.stem}.png"
    command = [chromium(), *_FLAGS, f"--user-data-dir={profile}", f"--screenshot={picture}"]
    done = subprocess.run(
        [*command, "--dump-dom", probed.as_uri()],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Opened(done.stdout, console)
