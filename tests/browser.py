"""A headless Chromium for the tests: pages that must not say anything in their console, and accessibility checks."""

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unicodedata import normalize

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Page, sync_playwright

from tests.programs import absent

SERIOUS = ("serious", "critical")
BY_COLOUR = ("color-contrast", "link-in-text-block")
"""The rules of axe-core whose answer the colours can change: what is left to ask of a page's second scheme."""
PHONE = {"width": 375, "height": 700}


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium. Ends the test where it is not installed."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        absent("Chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def quiet_page(browser: Browser, **context) -> Iterator[Page]:
    """A page in a context of its own; at its end nothing may have been complained of, nor thrown by a script."""
    with browser.new_context(**context) as own:
        page, said = own.new_page(), []
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        yield page
        page.evaluate("0")  # what was said until now has arrived once this is answered
        assert not said, said


def serious_findings(page: Page, rules: tuple[str, ...] | None = None) -> list[str]:
    """What axe-core finds serious or critical on the page: rule and elements; of all its rules, or of these alone."""
    if not page.evaluate("'axe' in window"):  # half a megabyte, once for each document
        page.evaluate(AXE_SCRIPT)
    options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
    found = page.evaluate("async options => (await axe.run(options)).violations", options)
    return [f"{rule['id']}: {node['html']}" for rule in found if rule["impact"] in SERIOUS for node in rule["nodes"]]


def findings_in_both_schemes(page: Page) -> list[str]:
    """What it finds in the light colours, and what only the dark ones can change."""
    page.emulate_media(color_scheme="light")
    light = serious_findings(page)
    page.emulate_media(color_scheme="dark")
    return light + [f"in the dark: {finding}" for finding in serious_findings(page, BY_COLOUR)]


def artefacts(otherwise: Path) -> Path:
    """Where pictures of pages are kept: the folder GENREC_TEST_ARTEFACTS, made where it is missing, or `otherwise`."""
    folder = Path(os.environ.get("GENREC_TEST_ARTEFACTS") or otherwise)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def visit(page: Page, address: str) -> list[str]:
    """Open `address` and wait until its plots are drawn; the list of what is asked for, then and from then on."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_function("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")
    return asked


def printed(pdf: bytes) -> list[str]:
    """The text of a PDF that Chromium wrote, without spaces, read with each of its fonts in turn."""
    streams = []
    for match in re.finditer(rb"/Length (\d+)[^>]*>>\s*stream\r?\n", pdf):
        packed = pdf[match.end() : match.end() + int(match[1])]
        with suppress(zlib.error):  # a font or a picture
            streams.append(zlib.decompress(packed).decode("latin1"))
    glyphs = "".join(run for page in streams if " Tf" in page for run in re.findall(r"<([0-9A-F]+)>", page))
    codes = [int(glyphs[i : i + 4], 16) for i in range(0, len(glyphs), 4)]
    fonts = [_characters(stream) for stream in streams if "begincmap" in stream]
    return [re.sub(r"\s", "", normalize("NFKC", "".join(font.get(c, "") for c in codes))) for font in fonts]


def _characters(cmap: str) -> dict[int, str]:
    """Character by glyph, of a font's ToUnicode map."""
    found = {}
    for block in re.findall(r"beginbfchar\n(.*?)endbfchar", cmap, re.DOTALL):
        found |= {int(glyph, 16): chr(int(to, 16)) for glyph, to in re.findall(r"<(\w+)> <(\w{4})>", block)}
    for block in re.findall(r"beginbfrange\n(.*?)endbfrange", cmap, re.DOTALL):
        for low, high, to in re.findall(r"<(\w+)> <(\w+)> <(\w{4})>", block):
            found |= {
                glyph: chr(int(to, 16) + glyph - int(low, 16)) for glyph in range(int(low, 16), int(high, 16) + 1)
            }
    return found
