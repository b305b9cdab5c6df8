"""The console's pages on a real ledger: who may do what, and what does not get through."""

import json
import re
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from html import escape
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from genrec.config import Settings
from genrec.console.app import HEADERS, MAX_BYTES, make_app
from genrec.console.pages import COOKIE, GUARD, LOGINS_PER_NAME, router
from genrec.console.roles import MAY, Action, Role
from genrec.data.files import write_json
from genrec.data.subjects import Subject
from genrec.registry import CHAMPION, open_registry
from genrec.requests.audit import rows, verify_chain
from genrec.requests.lease import NIGHT, Lease
from genrec.requests.schema import RequestRow
from tests.servers import wait_for
from tests.snippets import ROOT
from tests.unit.conftest import CONCEPT
from tests.unit.console_site import ACCOUNTS, NOW, PASSWORD, Site, Visitor

SCRIPT = "<script>alert(1)</script>"
BY_ROLE = {Role.REQUESTER: "rita", Role.VERIFIER: "vera", Role.OPERATOR: "oscar"}


@pytest.fixture(scope="module")
def site(tmp_path_factory, shop, bundle, params):
    return Site(tmp_path_factory.mktemp("console") / "shop", shop, params, bundle)


@pytest.fixture(scope="module")
def visitors(site):
    """Everybody, logged in."""
    return {name: Visitor(site, name) for name in ACCOUNTS}


ROUTES = sorted((method, one.path) for one in router(None, None, None, None).routes for method in one.methods)


def filled(path, site):
    return path.format(request_id=site.fulfilled, batch_id=site.night, what="verify")


def test_without_a_session_every_page_leads_to_the_log_in_and_every_form_is_refused(site):
    stranger = Visitor(site)
    assert len(ROUTES) > 15
    for method, path in ROUTES:
        answer = stranger.request(method, filled(path, site))
        if path == "/login" and method == "GET":
            assert answer.status_code == 200
        elif method == "GET":
            assert (answer.status_code, answer.headers["location"]) in {(303, "/login"), (303, "/requests")}, path
        else:
            assert answer.status_code == 403, path
    polled = stranger.get("/nights/now", headers={"HX-Request": "true"})
    assert (polled.status_code, polled.headers["HX-Redirect"]) == (204, "/login")


def test_every_form_carries_its_sessions_token_and_none_other_gets_through(site, visitors):
    oscar, before = visitors["oscar"], verify_chain(site.ledger.engine)
    with site.open() as request_id:
        pages = [oscar.get(path).text for path in ("/requests/new", "/nights", f"/requests/{request_id}")]
        forms = [form for page in pages for form in re.findall(r"<form .*?</form>", page, re.DOTALL)]
        assert len(forms) > 8
        assert all(f'name="csrf" value="{oscar.token()}"' in form for form in forms)
        links = verify_chain(site.ledger.engine)
        for token in (None, "", visitors["vera"].token(), oscar.token()[:-1] + "g"):
            for method, path in ROUTES:
                if method == "POST":
                    answer = oscar.post(filled(path, site), data={} if token is None else {"csrf": token})
                    assert (answer.status_code, "not of your session" in answer.text) == (403, True), path
        assert verify_chain(site.ledger.engine) == links == before + 1
        assert oscar.get("/requests").status_code == 200  # /logout did not get through either


# --- roles -----------------------------------------------------------------------------------------------------------


def act(site, visitor, action, name):
    """Status codes of everything that an action stands for, done by a visitor called `name`."""
    match action:
        case Action.SUBMIT:
            draft = visitor.fill("/requests/dry-run", kind="user", user_id=site.next_user())
            token = re.search(r'name="draft" value="([^"]+)"', draft.text)
            return [draft.status_code, visitor.fill("/requests", draft=token[1]).status_code]
        case Action.SEE_OWN:
            with site.open(name) as own:
                return [visitor.get("/requests").status_code, visitor.get(f"/requests/{own}").status_code]
        case Action.SEE_ALL:
            paths = [f"/requests/{site.fulfilled}", f"/certificates/{site.fulfilled}", "/nights", "/nights/now"]
            paths += [f"/reports/{site.night}", f"/reports/{site.night}/summary.json"]
            return [visitor.get(path).status_code for path in paths]
        case Action.VERIFY:
            with site.open("rob") as request_id:
                return [visitor.fill(f"/requests/{request_id}/verify", how="a letter").status_code]
        case Action.HANDLE:
            with site.open("rob", verified=True) as request_id:
                steps = ("hold", "release", "extend", "cancel")
                return [visitor.fill(f"/requests/{request_id}/{step}", reason="so").status_code for step in steps]
        case Action.START:
            return [visitor.fill("/nights").status_code]


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("role", Role)
def test_each_role_may_do_what_the_table_says_and_nothing_else(site, visitors, role, action):
    name = "rob" if (role, action) == (Role.REQUESTER, Action.SEE_ALL) else BY_ROLE[role]  # rita's are not all
    before = verify_chain(site.ledger.engine), len(site.asked)
    statuses = act(site, visitors[name], action, name)
    if role in MAY[action]:
        assert set(statuses) <= {200, 303}
        assert (action is Action.START) == (len(site.asked) > before[1])
    else:
        assert set(statuses) <= {403, 404}
        events = [row.event for row in site.ledger.engine.connect().exec_driver_sql(
            f"SELECT event FROM audit WHERE seq > {before[0]} ORDER BY seq").all()]  # fmt: skip
        assert set(events) <= {"received", "verified", "queued", "cancelled"}  # the test's own, and no more
        assert len(site.asked) == before[1]


def test_the_table_of_the_documentation_is_the_one_of_the_code():
    page = (ROOT / "docs" / "how-to" / "console.md").read_text()
    head, _, *rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    assert head[1:] == list(Role)
    told = {row[0]: frozenset(role for role, cell in zip(Role, row[1:], strict=True) if cell == "yes") for row in rows}
    assert told == {action.value: roles for action, roles in MAY.items()}
    htmx = (ROOT / "genrec" / "console" / "static" / "htmx.min.js").read_text()
    assert f"htmx {re.search(r'version:.([0-9.]+)', htmx)[1]}," in page


def test_pages_offer_what_the_role_may(site, visitors):
    with site.open("rita") as request_id:
        offered = {
            name: re.findall(r'action="/requests/\S+/(\w+)"', visitors[name].get(f"/requests/{request_id}").text)
            for name in ("rita", "vera", "oscar")
        }
    assert offered == {"rita": [], "vera": ["verify"], "oscar": ["verify", "hold", "extend", "cancel"]}
    assert "/nights" not in visitors["rita"].get("/requests").text
    closed = {name: visitors[name].get(f"/requests/{site.fulfilled}").text for name in ("rita", "vera")}
    assert [f'href="/reports/{site.night}"' in page for page in closed.values()] == [False, True]
    assert visitors["rita"].get("/nowhere").text.count("There is no page at this address.") == 1
    assert "Start a night" not in visitors["vera"].get("/nights").text
    assert "Start a night" in visitors["oscar"].get("/nights").text


def test_a_concept_takes_two_people_and_a_person_one(site, visitors):
    vera, vic = visitors["vera"], visitors["vic"]
    with site.open("vera", Subject("concept", concept=CONCEPT)) as request_id:
        own = vera.fill(f"/requests/{request_id}/verify", how="I know it")
        assert (own.status_code, "another person verifies it" in own.text) == (403, True)
        assert site.ledger.get(request_id).state == "received"
        assert site.ledger.deny_list() == frozenset()
        assert vic.fill(f"/requests/{request_id}/verify", how="the board's minute").status_code == 303
        stored = site.ledger.get(request_id)
        assert (stored.state, stored.requested_by, stored.verified_by) == ("queued", "vera", "vic")
        carrying = {site.dataset.item_ids[i] for i in site.dataset.concepts[CONCEPT]}
        assert site.ledger.deny_list() == carrying
    with site.open("vera") as request_id:
        assert vera.fill(f"/requests/{request_id}/verify", how="a letter").status_code == 303


def test_requesters_see_their_own_and_no_trace_of_others(site, visitors):
    rita, rob = visitors["rita"], visitors["rob"]
    subject = Subject("user", site.next_user())
    with site.open("rita", subject) as request_id:
        assert request_id in rita.get("/requests").text
        assert request_id not in rob.get("/requests").text
        assert rob.get(f"/requests/{request_id}").status_code == 404
        draft = rob.fill("/requests/dry-run", kind="user", user_id=subject.user_id)
        token = re.search(r'name="draft" value="([^"]+)"', draft.text)[1]
        again = rob.fill("/requests", draft=token)
        assert (again.status_code, "Somebody else has submitted this" in again.text) == (409, True)
        assert rob.fill(f"/requests/{request_id}/cancel", reason="x").status_code == 404
    assert rob.get(f"/certificates/{site.fulfilled}").status_code == 404
    assert rita.get(f"/certificates/{site.fulfilled}").content == site.certificate.read_bytes()


# --- sessions over HTTP ----------------------------------------------------------------------------------------------


def test_a_planted_cookie_is_worth_nothing_after_the_log_in(site):
    attacker, victim = Visitor(site), Visitor(site)
    attacker.get("/login")
    planted = attacker.cookies[GUARD]
    for name in (GUARD, COOKIE):
        victim.cookies.set(name, planted, domain="127.0.0.1", path="/login" if name == GUARD else "/")
    answer = victim.log_in("oscar")
    assert answer.status_code == 303
    (cookie,) = answer.headers.get_list("set-cookie")
    assert cookie.startswith(f"{COOKIE}=")
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie  # there is no TLS here
    assert victim.cookies[COOKIE] != planted
    attacker.cookies.set(COOKIE, planted, domain="127.0.0.1")
    assert attacker.get("/requests").headers["location"] == "/login"


def test_behind_tls_the_cookies_stay_there(site):
    visitor = Visitor(site)
    visitor.base_url = "https://127.0.0.1"
    answers = visitor.get("/login"), visitor.log_in("rob")
    assert [one.headers["set-cookie"].split("=")[0] for one in answers if "Secure" in one.headers["set-cookie"]] == [
        GUARD, COOKIE
    ]  # fmt: skip


def test_only_the_log_in_and_the_log_out_set_a_cookie(site, visitors):
    """So that an answer to a browser that did not send its cookie takes no session away."""
    oscar, stranger = visitors["oscar"], Visitor(site)
    paths = [filled(path, site) for method, path in ROUTES if method == "GET" and path != "/login"]
    paths += ["/favicon.ico", "/static/console.css", "/static/gone.css", "/nowhere", "/requests/r-0", "/reports/b-0"]
    for visitor in (oscar, stranger):
        answers = [visitor.get(path) for path in paths]
        assert {one.status_code for one in answers} >= ({200, 404} if visitor is oscar else {303, 404})
        answers += [visitor.post(path, data={"csrf": "x"}) for path in ("/login", "/logout", "/nights", "/nowhere")]
        assert [one.url for one in answers if "set-cookie" in one.headers] == []
    guarded = stranger.get("/login")
    assert {"Path=/login", "HttpOnly", "SameSite=lax"} <= set(guarded.headers["set-cookie"].split("; "))
    assert guarded.headers["set-cookie"].startswith(f"{GUARD}=")
    assert oscar.get("/login").headers["location"] == "/requests"
    assert oscar.get("/requests").status_code == 200


def test_a_log_in_form_is_its_browsers_own(site):
    """Another site cannot log a browser in as somebody else: it has no form with the browser's token."""
    victim, attacker = Visitor(site), Visitor(site)
    token = attacker.token("/login")
    named = {"name": "rob", "password": PASSWORD}
    for visit in (False, True):  # a browser that has never seen the form, and one that has
        if visit:
            victim.get("/login")
        for given in ({}, {"csrf": ""}, {"csrf": token}):
            answer = victim.post("/login", data={**named, **given})
            assert (answer.status_code, COOKIE in victim.cookies) == (403, False)
    tabs = [victim.token("/login") for _ in range(2)]
    assert victim.log_in("rob", "a wrong password").status_code == 401
    assert victim.post("/login", data={**named, "csrf": tabs[0]}).status_code == 303  # both tabs work
    assert victim.get("/requests").status_code == 200


def test_a_log_out_ends_the_session_for_whoever_kept_the_cookie(site):
    visitor, thief = Visitor(site, "vera"), Visitor(site)
    thief.cookies.set(COOKIE, visitor.cookies[COOKIE], domain="127.0.0.1")
    assert thief.get("/requests").status_code == 200
    assert visitor.fill("/logout").headers["location"] == "/login"
    assert thief.get("/requests").headers["location"] == "/login"
    assert COOKIE not in visitor.cookies


def test_log_ins_are_throttled_by_name(site):
    wrong = [Visitor(site).log_in("nobody", "a wrong password") for _ in range(LOGINS_PER_NAME.burst + 1)]
    assert [answer.status_code for answer in wrong] == [401] * LOGINS_PER_NAME.burst + [429]
    assert 0 < int(wrong[-1].headers["Retry-After"]) <= 60
    assert wrong[0].text.count("Name or password is wrong.") == 1
    assert Visitor(site).log_in("rob").status_code == 303  # others are not


# --- what does not get through ---------------------------------------------------------------------------------------


def test_scripts_in_texts_are_text(site, visitors):
    oscar = visitors["oscar"]
    with site.open("rita") as request_id:
        oscar.fill(f"/requests/{request_id}/verify", how=SCRIPT)
        oscar.fill(f"/requests/{request_id}/extend", reason=SCRIPT)
        oscar.fill(f"/requests/{request_id}/hold", reason=SCRIPT)
        page = oscar.get(f"/requests/{request_id}").text
        assert page.count(escape(SCRIPT)) >= 6  # in the facts and in the history
        answers = [
            page, oscar.fill("/requests/dry-run", kind="concept", concept=SCRIPT).text,
            oscar.fill("/requests/dry-run", kind=SCRIPT).text, oscar.fill("/requests", draft=SCRIPT).text,
            oscar.get(f"/requests/{SCRIPT}").text, oscar.get(f"/reports/{SCRIPT}").text,
            Visitor(site).log_in(SCRIPT, SCRIPT).text,
        ]  # fmt: skip
    assert all("alert(1)</script" not in answer for answer in answers)
    assert all("<script>" not in answer for answer in answers)


def test_a_concepts_hostile_title_is_text_in_the_queue(site, visitors):
    with site.open("vera", Subject("item", item_id=site.dataset.item_ids[9])) as request_id:
        with site.ledger.engine.begin() as connection:
            connection.execute(RequestRow.__table__.update().where(RequestRow.id == request_id).values(item_id=SCRIPT))
        page = visitors["vera"].get("/requests").text
        assert (page.count(escape(SCRIPT)), SCRIPT in page) == (1, False)


@pytest.mark.parametrize("kind", ["certificates", "reports", "requests", "static"])
@pytest.mark.parametrize(
    "name", ["../../params.yaml", "..%2f..%2fparams.yaml", "%2e%2e/params.yaml", "....//params.yaml", "/etc/passwd",
             "..%5c..%5cparams.yaml", "latest%00"]
)  # fmt: skip
def test_no_name_leads_out_of_its_folder(site, visitors, kind, name):
    answer = visitors["oscar"].get(f"/{kind}/{name}")
    assert answer.status_code in (303, 307, 404, 405)
    assert "seed:" not in answer.text
    assert "root:" not in answer.text


def test_the_report_is_shown_as_written_in_an_origin_of_its_own(site, visitors):
    answer = visitors["vera"].get(f"/reports/{site.night}")
    assert answer.content == site.report.read_bytes()
    assert answer.headers["Content-Security-Policy"].startswith("sandbox allow-scripts;")
    assert "allow-same-origin" not in answer.headers["Content-Security-Policy"]
    figures = visitors["vera"].get(f"/reports/{site.night}/summary.json")
    assert figures.content == site.report.with_name("summary.json").read_bytes()
    assert f"{site.night}-summary.json" in figures.headers["Content-Disposition"]
    assert f'href="/reports/{site.night}/summary.json"' in visitors["vera"].get("/nights").text
    for path in ("/reports/b-000000000000", "/reports/b-000000000000/summary.json"):
        assert visitors["vera"].get(path).status_code == 404


def test_every_answer_has_the_headers_and_no_page_a_script_of_its_own(site, visitors):
    oscar = visitors["oscar"]
    paths = ["/requests", "/requests?closed=1", "/requests/new", "/nights", "/api", "/login", "/nope", "/requests/nope"]
    paths += [f"/requests/{site.fulfilled}", f"/certificates/{site.fulfilled}", "/static/console.css", "/api/v1/x"]
    for path in paths:
        answer = (Visitor(site) if path == "/login" else oscar).get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS, path
        assert not re.search(r"<script(?! src=\"/static/)|style=| on\w+=|https?://(?!www\.w3\.org)", answer.text), path
    page = oscar.get("/requests").text
    for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
        assert oscar.get(asset).status_code == 200
    assert oscar.post("/login", content=b"x" * (MAX_BYTES + 1)).status_code == 413
    assert oscar.post("/login", content=iter([b"x"])).status_code == 413


def test_a_persons_id_is_on_no_page_while_open_or_after(site, visitors):
    oscar = visitors["oscar"]
    person = site.next_user()
    item = site.dataset.item_ids[site.dataset.history(site.dataset.user_ids.index(person))[0]]
    seen = []
    for fields in ({"kind": "user", "user_id": person}, {"kind": "interaction", "user_id": person, "item_id": item}):
        dry = oscar.fill("/requests/dry-run", **fields)
        draft = re.search(r'name="draft" value="([^"]+)"', dry.text)[1]
        path = oscar.fill("/requests", draft=draft).headers["location"]
        named = oscar.fill(f"{path}/verify", how=f"passport of {person}")
        assert (named.status_code, "holds the person" in named.text) == (409, True)
        again = oscar.fill("/requests", draft=draft)
        assert again.headers["location"] == path  # sent twice, stored once
        digest = site.ledger.get(path.rpartition("/")[2]).digest
        shown = oscar.get(path).text
        assert digest[:12] in shown
        assert digest not in shown
        seen += [dry.text, named.text, shown, oscar.get("/requests").text]
        assert oscar.fill(f"{path}/cancel", reason="withdrawn").status_code == 303
        seen += [oscar.get(path).text, oscar.get("/requests?closed=1").text]
    seen.append(oscar.get(f"/requests/{site.fulfilled}").text)
    assert [page for page in seen if re.search(rf"\b({person}|{site.forgotten})\b", page)] == []


# --- the queue and the nights ----------------------------------------------------------------------------------------


def test_overdue_requests_are_marked_and_come_first(site, visitors):
    with site.open(now=NOW - timedelta(days=40)) as late, site.open() as fresh:
        page = visitors["vera"].get("/requests").text
        rows = {row: "overdue" in text for row, text in re.findall(r'href="/requests/(r-\w+)">(.*?)</tr>', page, re.S)}
        assert (next(iter(rows)), rows[late], rows[fresh]) == (late, True, False)
        assert "1 request is overdue." in page
        assert 'class="overdue"' in visitors["vera"].get(f"/requests/{late}").text
        assert "/extend" not in visitors["oscar"].get(f"/requests/{late}").text
    assert "overdue" not in visitors["vera"].get("/requests").text


@pytest.mark.parametrize("held", [True, False])
def test_the_running_night_is_followed_and_no_other_starts(site, visitors, held):
    oscar, asked = visitors["oscar"], len(site.asked)
    with site.open(verified=True) as request_id:
        lease = Lease.acquire(site.ledger.engine, NIGHT, "nightly host 7", lambda: datetime.now(UTC), 60)
        with lease if held else nullcontext():
            if not held:
                lease.release()
            batch = site.ledger.claim(now=NOW)
            site.ledger.set_stage(batch.id, "planned", {}, now=NOW)
            gates = [{"name": name, "blocking": name != "cost", "verdict": "FAIL"} for name in ("utility", "cost")]
            attempt = {
                "number": 1,
                "group": "users",
                "method": "ucan",
                "verdict": "FAIL",
                "wall_s": 1.5,
                "reason": SCRIPT,
                "gates": gates,
            }
            write_json(site.workspace.var / "nights" / batch.id / "attempt-1.json", attempt)
            page = oscar.get("/nights").text
            polled = re.search(r'hx-get="([^"]+)"', page)[1]
            assert oscar.get(polled).status_code == 204  # nothing has changed
            for shown in (batch.id, "planned", request_id, "ucan", "utility", escape(SCRIPT)):
                assert shown in page
            assert "cost" not in page
            assert ("nightly host 7" in page) == held
            assert ("broke off at the stage planned" in page) != held
            started = oscar.fill("/nights", page="/nights")
            assert (started.status_code, len(site.asked) - asked) == ((409, 0) if held else (303, 1))
            assert ("is at work since" in started.text) == held
            site.ledger.set_stage(batch.id, "promoting", {"attempts": [attempt | {"verdict": "PASS"}]}, now=NOW)
            assert 'class="verdict pass"' in oscar.get(polled).text
            site.ledger.set_stage(batch.id, "failing", {"outcome": "held"}, now=NOW)
            site.ledger.fail(batch.id, "utility", now=NOW)
    page = oscar.get(polled).text
    assert "Nothing is running." in page
    assert re.search(rf'{batch.id}</th><td><span class="state held">', page)


def test_a_night_of_its_own_that_fails_is_said_by_its_errors_name_alone(site):
    oscar = Visitor(SimpleNamespace(app=make_app(site.workspace)), "oscar")
    params, log = site.workspace.params_file, site.workspace.var / "console-night.log"
    whole = params.read_text()
    params.write_text(f"{whole}\nunheard_of: 1\n")
    started, again = (oscar.fill("/nights", page="/nights") for _ in range(2))
    assert (started.status_code, again.status_code) == (303, 409)
    assert "begins or ends just now" in again.text
    page = wait_for(lambda: "ended with ConfigError" in (page := oscar.get("/nights").text) and page, 120)
    params.write_text(whole)
    assert ("unheard_of" in log.read_text(), "unheard_of" in page) == (True, False)
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_ledger_that_gives_out_is_said_in_one_line(site, visitors):
    token = site.accounts.issue_token("oscar")
    with site.ledger.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE requests RENAME TO away")
    answers = [visitors["oscar"].get("/requests")]
    answers.append(visitors["oscar"].get("/api/v1/requests", headers={"Authorization": f"Bearer {token}"}))
    with site.ledger.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO requests")
    for answer in answers:
        assert (answer.status_code, "database does not answer. Start it" in answer.text) == (503, True)
    assert visitors["oscar"].get("/requests").status_code == 200


def test_without_a_champion_a_request_can_be_submitted_all_the_same(site, visitors):
    MlflowClient(site.workspace.mlflow_uri).delete_registered_model_alias("genrec", CHAMPION)
    dry = visitors["rita"].fill("/requests/dry-run", kind="concept", concept=CONCEPT)
    assert "No model is served yet." in visitors["oscar"].get("/nights").text
    open_registry(site.workspace).promote("1", None)
    assert "unknown: The registry has no champion" in dry.text
    draft = re.search(r'name="draft" value="([^"]+)"', dry.text)[1]
    stored = visitors["rita"].fill("/requests", draft=draft)
    assert stored.status_code == 303
    site.close(stored.headers["location"].rpartition("/")[2])


def test_the_cookie_key_is_made_once_for_its_owner_or_given(site):
    key = site.workspace.var / "console.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert site.workspace.console_key() == key.read_bytes()
    assert Settings(home=site.workspace.root, console_key="given").workspace.console_key() == b"given"
    assert PASSWORD not in json.dumps([str(vars(site.workspace.settings))])


def test_the_audit_chain_names_the_operator_who_acted(site, visitors):
    with site.open("rob", verified=True) as request_id:
        act_of = {"hold": "held", "release": "queued", "extend": "extended", "cancel": "cancelled"}
        for step in act_of:
            visitors["oscar"].fill(f"/requests/{request_id}/{step}", reason="so")
        last = {row["event"]: json.loads(row["payload"]) for row in rows(site.ledger.engine, request_id)}
    assert {event: last[event].get("by") for event in act_of.values()} == dict.fromkeys(act_of.values(), "oscar")
