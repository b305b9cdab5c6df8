"""The console in a browser, from a request to its certificate: real processes, real night, real Chromium."""

import json
import os
import re
from pathlib import Path

import httpx
import pytest

from genrec.config import Settings
from genrec.console.accounts import Accounts
from genrec.console.roles import Role
from genrec.requests.certificates import verify
from tests.browser import PHONE, artefacts, quiet_page, serious_findings
from tests.conftest import copied, set_params
from tests.crash import CONCEPT, UNLEARNING
from tests.servers import BIN, background, free_port, wait_for

PASSWORD = "correct horse battery"
ACCOUNTS = {"rita": Role.REQUESTER, "vera": Role.VERIFIER, "vic": Role.VERIFIER, "oscar": Role.OPERATOR}
NIGHT_MS = 300_000


@pytest.fixture(scope="module")
def console(trained, tmp_path_factory):
    """URL and workspace of `genrec console`, a process of its own, on a copy of the trained shop."""
    home = tmp_path_factory.mktemp("console") / "shop"
    copied(trained, home)
    set_params(home, unlearning=UNLEARNING)
    accounts = Accounts(Settings(home=home).workspace.console_users)
    for name, role in ACCOUNTS.items():
        accounts.add(name, role, PASSWORD)
    port = free_port()
    environment = {**os.environ, "GENREC_HOME": str(home), "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]])}
    url, command = f"http://127.0.0.1:{port}", [BIN / "python", "-m", "genrec.cli", "console", "--port", str(port)]
    with background(command, home.with_suffix(".log"), environment):
        wait_for(lambda: httpx.get(f"{url}/login").is_success, 120)
        yield url, home


def log_in(page, url, name):
    page.set_default_timeout(NIGHT_MS)  # the machine may have other things to do
    page.goto(f"{url}/login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Queue").wait_for()


def assert_readable(page):
    """No serious finding of axe in light or dark, and nothing to be scrolled sideways on a phone."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert serious_findings(page) == [], (page.url, scheme)
    wide = page.viewport_size
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], page.url
    page.set_viewport_size(wide)


def submit(page, concept, look=lambda page: None):
    page.get_by_role("link", name="New request").click()
    look(page)
    page.get_by_label("Concept").fill(concept)
    page.get_by_role("button", name="Look what it would take").first.click()
    page.get_by_text("Interactions to erase").wait_for()
    look(page)
    page.get_by_role("button", name="Submit this request").click()
    return page.get_by_role("heading", name=re.compile("Request r-")).inner_text().split()[-1]


def test_from_a_request_to_its_certificate(console, browser, tmp_path):
    (url, home), pictures = console, artefacts(tmp_path)
    with quiet_page(browser) as rita:
        rita.goto(f"{url}/requests")
        assert rita.url == f"{url}/login"
        assert_readable(rita)
        log_in(rita, url, "rita")
        request = submit(rita, CONCEPT, assert_readable)
        assert_readable(rita)
        assert rita.get_by_role("button", name="Verify").count() == 0
        rita.goto(f"{url}/api")
        assert_readable(rita)

    with browser.new_context() as context:  # a refusal is an error in the browser's own console
        vera = context.new_page()
        log_in(vera, url, "vera")
        own = submit(vera, "Horror")
        vera.get_by_label(re.compile("How you checked")).fill("I know it")
        vera.get_by_role("button", name="Verify").click()
        assert "another person verifies it" in vera.get_by_role("alert").inner_text()
        assert_readable(vera)

    with quiet_page(browser) as vic:
        log_in(vic, url, "vic")
        vic.get_by_role("link", name=request).click()
        vic.get_by_label(re.compile("How you checked")).fill("minute 12 of the board")
        vic.keyboard.press("Enter")
        vic.get_by_text("queued", exact=True).first.wait_for()

    with quiet_page(browser, accept_downloads=True) as oscar:
        log_in(oscar, url, "oscar")
        assert_readable(oscar)
        oscar.get_by_role("link", name=own).click()
        assert_readable(oscar)
        oscar.get_by_label("Reason to cancel").fill("asked by mistake")
        oscar.get_by_role("button", name="Cancel the request").click()
        oscar.get_by_text("asked by mistake").first.wait_for()

        oscar.get_by_role("link", name="Nights").click()
        oscar.get_by_role("button", name="Start a night now").click()
        status = oscar.get_by_role("status")
        status.filter(has_text="A night begins").wait_for()
        # from here on the page follows by itself
        night = status.filter(has_text=re.compile(r"Night b-\w+ is running")).inner_text().split()[1]
        assert_readable(oscar)
        attempts = oscar.get_by_role("table", name=re.compile("Attempts"))
        attempts.get_by_role("cell", name="tracer", exact=True).wait_for()
        oscar.screenshot(path=pictures / "console-night.png", full_page=True)
        report = oscar.get_by_role("link", name=f"report of {night}")
        report.wait_for()
        status.filter(has_text="Nothing is running").wait_for()
        told = json.loads((home / "reports" / "nights" / night / "summary.json").read_text())
        assert told["outcome"] == "promoted", told["reason"]
        assert_readable(oscar)

        report.click()
        oscar.get_by_role("heading", name="Requests").wait_for()
        assert CONCEPT in oscar.get_by_role("main").inner_text()
        assert oscar.locator(".plot svg").count() > 0  # its scripts run, in an origin of its own
        assert oscar.evaluate("origin") == "null"

        oscar.goto(f"{url}/requests?closed=true")
        assert_readable(oscar)
        oscar.get_by_role("link", name=request).click()
        assert_readable(oscar)
        with oscar.expect_download() as download:
            oscar.get_by_role("link", name="Download the certificate").click()
        issued = home / "reports" / "certificates" / f"{request}.json"
        assert Path(download.value.path()).read_bytes() == issued.read_bytes()
        assert verify(issued).ok
        assert json.loads(issued.read_text())["request"]["label"] == CONCEPT
        oscar.screenshot(path=pictures / "console-request.png", full_page=True)
        oscar.get_by_role("button", name="Log out").click()
        oscar.goto(f"{url}/nights")
        assert oscar.url == f"{url}/login"
    assert (home / "var" / "console-night.log").stat().st_mode & 0o777 == 0o600
    assert home.with_suffix(".log").read_text().count("\n") == 1  # its address, and not a word of who asked for what
