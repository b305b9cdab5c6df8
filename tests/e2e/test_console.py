"""The console in a browser, from a request to its certificate: real processes, real night, real Chromium."""

import json
import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from genrec.config import Settings
from genrec.console.accounts import Accounts
from genrec.console.roles import Role
from genrec.requests.certificates import verify
from tests.browser import PHONE, artefacts, findings_in_both_schemes, quiet_page
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
    go(page, f"{url}/login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    arrive(page, f"{url}/requests")


def go(page, address):
    """Open a page of the console; it must not lead elsewhere, to the log-in for one."""
    answer = page.goto(address)
    assert (answer.status, page.url) == (200, address), page.inner_text("body")


def arrive(page, address):
    """Wait for the page that was asked for, or for the log-in, which is not it. address: a regular expression."""
    page.wait_for_url(lambda url: re.fullmatch(address, url) or url.endswith("/login"))
    assert re.fullmatch(address, page.url), f"{page.url} is not {address}"


def appears(locator):
    """The same, for what comes by itself: the page polls, and leaves for the log-in when it has no session any more."""
    locator.or_(locator.page.get_by_role("heading", name="Log in")).first.wait_for()
    assert not locator.page.url.endswith("/login"), locator
    return locator


def assert_readable(page):
    """No serious finding of axe in light or dark, and nothing to be scrolled sideways on a phone."""
    assert findings_in_both_schemes(page) == [], page.url
    wide = page.viewport_size
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], page.url
    page.set_viewport_size(wide)


def submit(page, url, concept, look=lambda page: None):
    page.get_by_role("link", name="New request").click()
    arrive(page, f"{url}/requests/new")
    look(page)
    page.get_by_label("Concept").fill(concept)
    page.get_by_role("button", name="Look what it would take").first.click()
    page.get_by_text("Interactions to erase").wait_for()
    look(page)
    page.get_by_role("button", name="Submit this request").click()
    arrive(page, f"{url}/requests/r-.*")
    return page.url.rpartition("/")[2]


@contextmanager
def another_site(console):
    """A page of another site than the console's: it shows a picture of it, links into it, and has a form for it."""
    text = f"""<!doctype html><html lang="en"><title>Mail</title><img src="{console}/favicon.ico" alt="">
        <a href="{console}/requests">Your request</a>
        <form method="post" action="{console}/logout"><button>You have won</button></form></html>"""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()


def test_a_link_from_elsewhere_keeps_the_session_and_a_form_does_nothing(console, browser):
    url, _ = console
    with another_site(url) as mail, browser.new_context() as context:  # a refusal is an error in the browser's console
        page = context.new_page()
        log_in(page, url, "oscar")
        page.goto(mail)
        with page.expect_response(f"{url}/requests") as answer:
            page.get_by_role("link", name="Your request").click()
        assert answer.value.request.header_value("sec-fetch-site") == "cross-site"
        arrive(page, f"{url}/requests")
        page.get_by_text("oscar, operator").wait_for()
        page.goto(mail)
        page.get_by_role("button", name="You have won").click()
        page.get_by_role("heading", name="Not allowed").wait_for()
        assert "not of your session" in page.get_by_role("alert").inner_text()
        assert_readable(page)
        assert page.goto(f"{url}/nowhere").status == 404
        assert_readable(page)
        go(page, f"{url}/nights")  # and is still there


def test_from_a_request_to_its_certificate(console, browser, tmp_path):
    (url, home), pictures = console, artefacts(tmp_path)
    with quiet_page(browser) as rita:
        rita.goto(f"{url}/requests")
        assert rita.url == f"{url}/login"
        assert_readable(rita)
        log_in(rita, url, "rita")
        request = submit(rita, url, CONCEPT, assert_readable)
        assert_readable(rita)
        assert rita.get_by_role("button", name="Verify").count() == 0
        go(rita, f"{url}/api")
        assert_readable(rita)

    with browser.new_context() as context:  # a refusal is an error in the browser's own console
        vera = context.new_page()
        log_in(vera, url, "vera")
        own = submit(vera, url, "Horror")
        vera.get_by_label(re.compile("How you checked")).fill("I know it")
        vera.get_by_role("button", name="Verify").click()
        assert "another person verifies it" in vera.get_by_role("alert").inner_text()
        assert_readable(vera)

    with quiet_page(browser) as vic:
        log_in(vic, url, "vic")
        vic.get_by_role("link", name=request).click()
        arrive(vic, f"{url}/requests/{request}")
        vic.get_by_label(re.compile("How you checked")).fill("minute 12 of the board")
        vic.keyboard.press("Enter")
        appears(vic.get_by_text("queued", exact=True).first)

    with quiet_page(browser, accept_downloads=True) as oscar:
        log_in(oscar, url, "oscar")
        assert_readable(oscar)
        oscar.get_by_role("link", name=own).click()
        arrive(oscar, f"{url}/requests/{own}")
        assert_readable(oscar)
        oscar.get_by_label("Reason to cancel").fill("asked by mistake")
        oscar.get_by_role("button", name="Cancel the request").click()
        appears(oscar.get_by_text("asked by mistake").first)

        oscar.get_by_role("link", name="Nights").click()
        arrive(oscar, f"{url}/nights")
        oscar.get_by_role("button", name="Start a night now").click()
        status = oscar.get_by_role("status")
        appears(status.filter(has_text="A night begins"))
        # from here on the page follows by itself
        running = appears(status.filter(has_text=re.compile(r"Night b-\w+ is running")))
        night = running.inner_text().split()[1]
        assert_readable(oscar)
        attempts = oscar.get_by_role("table", name=re.compile("Attempts"))
        appears(attempts.get_by_role("cell", name="tracer", exact=True))
        oscar.screenshot(path=pictures / "console-night.png", full_page=True)
        report = appears(oscar.get_by_role("link", name=f"report of {night}"))
        appears(status.filter(has_text="Nothing is running"))
        told = json.loads((home / "reports" / "nights" / night / "summary.json").read_text())
        assert told["outcome"] == "promoted", told["reason"]
        assert_readable(oscar)
        with oscar.expect_download() as download:
            oscar.get_by_role("link", name=f"figures of {night}").click()
        assert json.loads(Path(download.value.path()).read_text()) == told

        report.click()
        arrive(oscar, f"{url}/reports/{night}")
        oscar.get_by_role("heading", name="Requests").wait_for()
        assert CONCEPT in oscar.get_by_role("main").inner_text()
        assert oscar.locator(".plot svg").count() > 0  # its scripts run, in an origin of its own
        assert oscar.evaluate("origin") == "null"
        oscar.evaluate("address => { location.href = address; }", f"{url}/requests?closed=true")
        arrive(oscar, re.escape(f"{url}/requests?closed=true"))

        assert request in oscar.get_by_role("main").inner_text()
        assert_readable(oscar)
        oscar.get_by_role("link", name=request).click()
        arrive(oscar, f"{url}/requests/{request}")
        assert_readable(oscar)
        with oscar.expect_download() as download:
            oscar.get_by_role("link", name="Download the certificate").click()
        issued = home / "reports" / "certificates" / f"{request}.json"
        assert Path(download.value.path()).read_bytes() == issued.read_bytes()
        assert verify(issued).ok
        assert json.loads(issued.read_text())["request"]["label"] == CONCEPT
        oscar.screenshot(path=pictures / "console-request.png", full_page=True)
        oscar.get_by_role("button", name="Log out").click()
        arrive(oscar, f"{url}/login")
        oscar.goto(f"{url}/nights")
        assert oscar.url == f"{url}/login"
    assert (home / "var" / "console-night.log").stat().st_mode & 0o777 == 0o600
    assert home.with_suffix(".log").read_text().count("\n") == 1  # its address, and not a word of who asked for what
