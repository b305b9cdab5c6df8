"""A headless Chromium for the tests: pages that must not say anything in their console, and accessibility checks."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

SERIOUS = ("serious", "critical")
PHONE = {"width": 375, "height": 700}


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium. Skips the test where it is not installed."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        pytest.skip("Chromium is not installed. On Debian: apt-get install chromium")
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


def serious_findings(page: Page) -> list[str]:
    """What axe-core finds serious or critical on the page: rule and elements."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html']}" for rule in found if rule["impact"] in SERIOUS for node in rule["nodes"]]
