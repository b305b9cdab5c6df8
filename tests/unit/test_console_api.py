"""The console's API: what its schema says holds for whatever is sent; tokens, keys and limits do their work."""

import re
from datetime import UTC, datetime

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from genrec.console.api import PER_ACCOUNT
from genrec.console.app import make_app
from genrec.console.throttle import Rate
from genrec.data.subjects import Subject
from genrec.requests.audit import verify_chain
from genrec.requests.lease import NIGHT, Lease
from tests.unit.console_site import ACCOUNTS, NOW, Site, Visitor

NO_LIMIT = Rate(10**6, 10**6)
HOLD = (
    not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_headers_conformance, checks.response_schema_conformance, checks.negative_data_rejection,
    checks.missing_required_header, checks.unsupported_method, checks.ignored_auth,
)  # fmt: skip

OPERATIONS = (
    "GET /requests", "POST /requests", "GET /requests/{request_id}", "GET /nights", "POST /nights",
    "GET /certificates/{request_id}",
    *(f"POST /requests/{{request_id}}/{step}" for step in ("verify", "hold", "release", "extend", "cancel")),
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory, shop, params):
    return Site(tmp_path_factory.mktemp("api") / "shop", shop, params, per_address=NO_LIMIT, per_account=NO_LIMIT)


@pytest.fixture(scope="module")
def callers(site):
    """A client with the token of each account."""
    return {name: caller(site.app, site.accounts.issue_token(name)) for name in ACCOUNTS}


def caller(app, token):
    return TestClient(app, headers={"Authorization": f"Bearer {token}"}, base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def described(site):
    """The operations by method and path, as a client reads them from the schema."""
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", site.app)
    operations = [found.ok() for found in schema.get_all_operations()]
    return {f"{one.method.upper()} {one.path}": one for one in operations}


@pytest.mark.parametrize(
    ("mode", "operation"),
    [(mode, one) for mode in GenerationMode for one in OPERATIONS
     if mode is GenerationMode.POSITIVE or one != "POST /nights"],  # it takes nothing that could be wrong
)  # fmt: skip
def test_the_schema_holds_for_good_and_bad_data(site, callers, described, operation, mode):
    """As an operator; half of the calls are about a request that is there."""
    whole, known = described[operation], {"request_id": site.fulfilled}
    cases = whole.as_strategy(mode) | whole.as_strategy(mode, path_parameters=known if "{" in operation else None)
    answered = []

    @given(cases)
    @settings(
        max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def call(case):
        token = callers["oscar"].headers["Authorization"]
        answered.append(case.call_and_validate(headers={"Authorization": token}, checks=HOLD).status_code)

    call()
    assert set(answered) & {200, 201, 202, 404, 409} if mode is GenerationMode.POSITIVE else 422 in answered


def test_every_operation_is_tested(described):
    assert sorted(described) == sorted(OPERATIONS)


def test_whatever_was_sent_the_chain_is_whole_and_the_description_fetches_nothing(site, callers):
    assert verify_chain(site.ledger.engine) > 4
    assert re.findall(r"https?://", callers["rita"].get("/api/v1/openapi.json").text) == []
    page = Visitor(site, "vera").get("/api").text
    assert page.count("/requests/{request_id}") == 6


def test_only_a_token_opens_it(site, callers):
    for header in (None, "", "Bearer", "Bearer x", "Basic dmVyYTp4", f"Bearer {'0' * 64}"):
        headers = {} if header is None else {"Authorization": header}
        answer = TestClient(site.app).get("/api/v1/requests", headers=headers)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "genrec console token" in answer.json()["error"]
    assert Visitor(site, "oscar").get("/api/v1/requests").status_code == 401  # a cookie is no token
    assert callers["oscar"].get("/requests").url.path == "/login"  # nor a token a cookie


def test_the_same_roles_and_the_same_two_people(site, callers):
    rita, vera, vic, oscar = (callers[name] for name in ("rita", "vera", "vic", "oscar"))
    concept = next(iter(site.dataset.concepts))
    asked = rita.post("/api/v1/requests", json={"kind": "concept", "concept": concept})
    assert (asked.status_code, asked.json()["requested_by"], asked.json()["state"]) == (201, "rita", "received")
    path = f"/api/v1/requests/{asked.json()['id']}"
    assert rita.post(f"{path}/verify", json={"how": "myself"}).status_code == 403
    assert vera.post(f"{path}/verify", json={"how": "order of the board"}).json()["verified_by"] == "vera"
    assert vera.post(f"{path}/verify", json={"how": "again"}).status_code == 409
    for step in ("hold", "release", "extend", "cancel"):
        assert vic.post(f"{path}/{step}", json={"reason": "x"}).status_code == 403
        assert oscar.post(f"{path}/{step}", json={"reason": "x"}).status_code == 200
    own = vera.post("/api/v1/requests", json={"kind": "concept", "concept": concept}).json()["id"]
    assert own != asked.json()["id"]
    refused = vera.post(f"/api/v1/requests/{own}/verify", json={"how": "myself"})
    assert (refused.status_code, "another person verifies it" in refused.json()["error"]) == (403, True)
    assert callers["rob"].get(path).status_code == 404
    assert callers["rob"].get("/api/v1/requests").json() == []
    assert [one["id"] for one in rita.get("/api/v1/requests?open=false").json()] == [asked.json()["id"], site.fulfilled]
    assert [one["id"] for one in oscar.get("/api/v1/requests?limit=1&offset=1").json()] != []


def test_an_idempotency_key_is_its_accounts_own(site, callers):
    users, key = site.dataset.user_ids[30:32], {"Idempotency-Key": "letter 7"}

    def ask(name, user):
        body = {"kind": "user", "user_id": user}
        return callers[name].post("/api/v1/requests", json=body, headers=key)

    first = ask("rita", users[0])
    site.close(first.json()["id"])
    assert ask("rita", users[0]).json()["id"] == first.json()["id"]
    other = ask("rita", users[1])
    assert (other.status_code, "was sent for another subject" in other.json()["error"]) == (409, True)
    assert ask("rob", users[1]).status_code == 201
    raw = list(site.ledger.engine.connect().exec_driver_sql("SELECT idempotency FROM requests").scalars())
    assert "letter 7" not in str(raw)


def test_a_mistyped_parameter_is_refused_and_not_left_out(callers):
    for path in ("requests?opne=true", "requests?is_open=true", "nights?limt=1"):
        assert callers["oscar"].get(f"/api/v1/{path}").status_code == 422, path


def test_an_answer_never_holds_a_persons_id(site, callers):
    user = site.dataset.user_ids[40]
    said = callers["vera"].post("/api/v1/requests", json={"kind": "user", "user_id": user, "extra": user})
    assert said.status_code == 422
    made = callers["vera"].post("/api/v1/requests", json={"kind": "user", "user_id": user})
    unknown = callers["vera"].post("/api/v1/requests", json={"kind": "user", "user_id": f"{user}-{user}"})
    assert unknown.status_code == 409
    listed = callers["vera"].get("/api/v1/requests")
    named = callers["vera"].post(f"/api/v1/requests/{made.json()['id']}/verify", json={"how": f"saw {user}"})
    assert named.status_code == 409
    texts = [answer.text for answer in (said, made, unknown, listed, named)]
    assert [text for text in texts if re.search(rf"\b{user}\b", text)] == []


def test_nights_are_listed_started_and_refused_while_one_runs(site, callers):
    told = callers["vera"].get("/api/v1/nights").json()
    assert [(night["batch_id"], night["outcome"], night["report"]) for night in told["past"]] == [
        (site.night, "promoted", True)
    ]
    assert callers["rita"].get("/api/v1/nights").status_code == 403
    assert callers["vera"].post("/api/v1/nights").status_code == 403
    before = len(site.asked)
    assert callers["oscar"].post("/api/v1/nights").status_code == 202
    with Lease.acquire(site.ledger.engine, NIGHT, "nightly", lambda: datetime.now(UTC), 60):
        assert callers["oscar"].post("/api/v1/nights").status_code == 409
        assert callers["oscar"].get("/api/v1/nights").json()["running"]["lease"]["holder"] == "nightly"
    assert len(site.asked) == before + 1


def test_a_certificate_is_the_file_that_was_issued(site, callers):
    answer = callers["rita"].get(f"/api/v1/certificates/{site.fulfilled}")
    assert answer.content == site.certificate.read_bytes()
    assert callers["rob"].get(f"/api/v1/certificates/{site.fulfilled}").status_code == 404
    with site.open("rita", Subject("item", item_id=site.dataset.item_ids[3]), now=NOW) as request_id:
        assert callers["rita"].get(f"/api/v1/certificates/{request_id}").status_code == 404


def test_an_account_and_an_address_have_their_limits(site):
    limited = make_app(site.workspace)
    tokens = [site.accounts.issue_token(name) for name in ("vera", "vic", "rob")]
    vera, vic, rob = (caller(limited, token) for token in tokens)
    statuses = [vera.get("/api/v1/requests?limit=1").status_code for _ in range(PER_ACCOUNT.burst + 8)]
    assert statuses[: PER_ACCOUNT.burst] == [200] * PER_ACCOUNT.burst
    assert 429 in statuses
    answer = vic.get("/api/v1/requests?limit=1")
    assert answer.status_code == 200
    while answer.status_code == 200:  # the rest of what the address has
        answer = (vic if "vic" in str(answer.request.headers) else rob).get("/api/v1/requests?limit=1")
    assert int(answer.headers["Retry-After"]) >= 1
