"""Certificates: same facts, same bytes; whoever changes one is found out."""

import dataclasses
import hashlib
import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from typer.testing import CliRunner

from genrec.cli import app
from genrec.errors import ConfigError, RequestError
from genrec.requests import certified
from genrec.requests.audit import canonical_json, head, rows, verify_chain
from genrec.requests.certificates import CertificateFacts, GateFigure, issue, recomputed_hash, verify
from genrec.requests.database import migrate
from genrec.requests.ledger import Request

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
REQUEST = Request(
    id="r-0123456789",
    kind="concept",
    digest="d" * 64,
    label="Horror",
    state="fulfilled",
    reason=None,
    attempts=0,
    received_at=NOW,
    verified_at=NOW,
    suppressed_at=NOW,
    unlearned_at=NOW,
    due_at=NOW,
    method="tracer",
    plan=None,
    batch_id="b-1",
)
CONCEPT_GATE = GateFigure("concept", "PASS", 0.0, 0.0, 0.004, 0.005, 900, "high <= limit", "SH@10")
GATES = (
    CONCEPT_GATE,
    GateFigure("utility", "PASS", 0.995, 0.985, 1.01, 0.98, 900, "low >= limit", "NDCG@10 ratio"),
    GateFigure("membership", "INCONCLUSIVE", 0.51, 0.44, 0.58, (0.45, 0.55), 90, "inside limit", "AUC", blocking=False),
    GateFigure("integrity", "PASS", None, None, None, None, None, "backbone hash unchanged"),
)
FACTS = CertificateFacts("d1", "d2", "h1", "h2", "6", "7", GATES)


def write_key(path, key):
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    public = path.with_suffix(".pub")
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path, public


@pytest.fixture
def keys(tmp_path):
    return write_key(tmp_path / "key.pem", Ed25519PrivateKey.from_private_bytes(b"k" * 32))


def test_a_signed_certificate_verifies_and_says_what_was_done(tmp_path, keys):
    path = issue(REQUEST, FACTS, tmp_path / "out", keys[0])
    result = verify(path, keys[1])
    assert (result.ok, result.signature, result.signer_known) == (True, "valid", True)
    assert (result.request_id, result.gates_checked) == (REQUEST.id, 3)
    content = json.loads(path.read_text())
    assert content["request"]["label"] == "Horror"
    assert content["times"]["unlearned"] == "2031-05-04T03:02:01+00:00"
    assert content["bundle_hash_after"] == "h2"
    assert content["gates"][0] == dataclasses.asdict(CONCEPT_GATE)
    assert "edited" in content["limits_of_the_claim"][0]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_issuing_twice_gives_the_same_bytes_and_never_replaces_another(tmp_path, keys):
    path = issue(REQUEST, FACTS, tmp_path, keys[0])
    before = path.read_bytes()
    assert issue(REQUEST, FACTS, tmp_path, keys[0]).read_bytes() == before
    with pytest.raises(RequestError, match="another certificate"):
        issue(REQUEST, dataclasses.replace(FACTS, model_version_after="8"), tmp_path, keys[0])
    assert path.read_bytes() == before


def test_an_unsigned_certificate_is_whole_but_nobodys(tmp_path, keys):
    path = issue(dataclasses.replace(REQUEST, method="retrain"), FACTS, tmp_path, None)
    assert (verify(path).ok, verify(path).signature) == (True, "absent")
    assert "trained again" in json.loads(path.read_text())["limits_of_the_claim"][0]
    assert verify(path, keys[1]).problems == ("It is not signed, so the given key says nothing about it.",)


def test_without_a_key_the_signer_is_not_known(tmp_path, keys):
    result = verify(issue(REQUEST, FACTS, tmp_path, keys[0]))
    assert (result.ok, result.signature, result.signer_known) == (True, "valid", False)


def test_a_signature_by_another_key_is_refused(tmp_path, keys):
    path = issue(REQUEST, FACTS, tmp_path, keys[0])
    _, other = write_key(tmp_path / "other.pem", Ed25519PrivateKey.generate())
    assert verify(path, other).problems == ("The signature is not by the given key.",)


def leaves(value, at=()):
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*at, key))
    else:
        yield at


def test_a_change_of_any_value_is_found(tmp_path, keys):
    path = issue(REQUEST, FACTS, tmp_path, keys[0])
    original = path.read_text()
    for *parents, last in leaves(json.loads(original)):
        changed = json.loads(original)
        inner = changed
        for key in parents:
            inner = inner[key]
        inner[last] = 0.123 if isinstance(inner[last], int | float) else "0" * 64
        path.write_text(json.dumps(changed))
        if last == "schema_version":
            with pytest.raises(RequestError, match=r"of version 0\.123"):
                verify(path)
        else:
            assert not verify(path).ok, (*parents, last)


def test_layout_does_not_matter(tmp_path, keys):
    path = issue(REQUEST, FACTS, tmp_path, keys[0])
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    assert verify(path, keys[1]).ok


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({"high": 0.006}, False),
        ({"high": 0.006, "verdict": "INCONCLUSIVE", "blocking": False}, True),
        ({"low": 0.006, "high": 0.007, "verdict": "FAIL", "blocking": False}, True),
        ({"verdict": "FAIL"}, False),
        ({"rule": "high <= max(retrained + 0.5 pp, limit)", "high": 0.006}, True),
    ],
)
def test_a_verdict_must_follow_from_its_figures(tmp_path, change, holds):
    gate = dataclasses.replace(CONCEPT_GATE, **change)
    assert verify(issue(REQUEST, dataclasses.replace(FACTS, gates=(gate,)), tmp_path, None)).ok is holds


@pytest.mark.parametrize(
    ("verdict", "exact", "blocking", "holds"),
    [
        ("PASS", False, True, True),
        ("INCONCLUSIVE", False, True, False),
        ("INCONCLUSIVE", False, False, True),
        ("INCONCLUSIVE", True, True, True),
        ("FAIL", True, True, False),
        ("FAIL", True, False, True),
    ],
)
def test_a_blocking_gate_stands_in_the_way_of_what_is_certified(tmp_path, verdict, exact, blocking, holds):
    """An edit needs every blocking PASS; weights trained again without the data are refused by a FAIL alone."""
    high, low = {"PASS": (0.004, 0.0), "INCONCLUSIVE": (0.006, 0.0), "FAIL": (0.007, 0.006)}[verdict]
    gate = dataclasses.replace(CONCEPT_GATE, verdict=verdict, high=high, low=low, blocking=blocking)
    result = verify(issue(REQUEST, dataclasses.replace(FACTS, gates=(gate,), exact=exact), tmp_path, None))
    said = f"Gate 'concept' is {verdict}, which this method does not pass with."
    assert result.problems == (() if holds else (said,))


def rewritten(path, version):
    """The certificate as `version` would have it, hashed anew; unsigned."""
    body = json.loads(path.read_text())
    del body["hash"], body["signature"]
    body["schema_version"] = version
    if version == 1:
        del body["exact"]
        for gate in body["gates"]:
            del gate["figure"], gate["blocking"]
    digest = hashlib.sha256(canonical_json(body).encode()).hexdigest()
    path.write_text(json.dumps(body | {"hash": digest, "signature": None}))
    return path


def test_a_certificate_of_the_first_version_verifies_as_it_did(tmp_path):
    """It does not say which gates block: an INCONCLUSIVE one is no problem."""
    gates = (dataclasses.replace(CONCEPT_GATE, verdict="INCONCLUSIVE"), GATES[1])
    result = verify(rewritten(issue(REQUEST, dataclasses.replace(FACTS, gates=gates), tmp_path, None), 1))
    assert (result.ok, result.signature, result.gates_checked) == (True, "absent", 2)


def test_a_certificate_of_a_newer_version_is_refused_with_the_remedy(tmp_path):
    path = rewritten(issue(REQUEST, FACTS, tmp_path, None), 3)
    with pytest.raises(RequestError, match=r"of version 3; .* 1 to 2\. Install the version that wrote it"):
        verify(path)


def test_a_signature_that_was_taken_out_is_missed(tmp_path, keys):
    path = issue(REQUEST, FACTS, tmp_path, keys[0])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"signature": None}))
    assert verify(path).problems == ("It names a key and has no signature: that was taken out.",)


@pytest.fixture
def engine(tmp_path):
    return migrate(f"sqlite:///{tmp_path / 'var' / 'ledger.db'}")


def test_the_audit_chain_names_each_certificate_once(tmp_path, engine):
    issued = {REQUEST.id: recomputed_hash(issue(REQUEST, FACTS, tmp_path / "out", None))}
    for _ in range(2):  # as a night that was killed after it
        certified.record(engine, issued, now=NOW)
    (row,) = rows(engine, REQUEST.id)
    assert (row["event"], json.loads(row["payload"])) == ("certified", {"sha256": issued[REQUEST.id]})
    assert certified.compare(engine, tmp_path / "out") == certified.Agreement(1, ())
    other = dataclasses.replace(REQUEST, id="r-before")
    issue(other, FACTS, tmp_path / "out", None)
    assert certified.compare(engine, tmp_path / "out") == certified.Agreement(1, ("r-before",))
    assert certified.compare(engine, tmp_path / "nowhere") == certified.Agreement(0, ())
    assert verify_chain(engine) == 1


def test_an_unsigned_certificate_that_was_changed_and_hashed_anew_is_found_by_the_chain(tmp_path, engine):
    directory = tmp_path / "reports" / "certificates"
    path = issue(REQUEST, FACTS, directory, None)
    certified.record(engine, {REQUEST.id: recomputed_hash(path)}, now=NOW)
    environment = {"GENREC_HOME": str(tmp_path), "GENREC_LEDGER_URL": str(engine.url)}
    asked = CliRunner().invoke(app, ["audit", "verify", "--json"], env=environment)
    assert json.loads(asked.stdout) == {"rows": 1, "head": head(engine), "certificates": 1, "unnamed": []}
    path.unlink()
    better = dataclasses.replace(CONCEPT_GATE, value=0.0, high=0.0)
    issue(REQUEST, dataclasses.replace(FACTS, gates=(better, *GATES[1:])), directory, None)
    assert verify(path).ok
    asked = CliRunner().invoke(app, ["audit", "verify"], env=environment)
    assert asked.exit_code == 1
    assert f"{REQUEST.id}.json is not the certificate that was issued" in str(asked.exception)


def test_only_fulfilled_requests_and_finite_figures_are_certified(tmp_path):
    with pytest.raises(RequestError, match="is running"):
        issue(dataclasses.replace(REQUEST, state="running"), FACTS, tmp_path, None)
    gate = dataclasses.replace(CONCEPT_GATE, value=float("nan"))
    with pytest.raises(RequestError, match="NaN"):
        issue(REQUEST, dataclasses.replace(FACTS, gates=(gate,)), tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_wrong_keys_and_files_are_named(tmp_path, keys):
    rsa, rsa_public = write_key(tmp_path / "rsa.pem", generate_private_key(65537, 2048))
    path = issue(REQUEST, FACTS, tmp_path, None)
    for call in (
        lambda: issue(REQUEST, FACTS, tmp_path, rsa),
        lambda: issue(REQUEST, FACTS, tmp_path, tmp_path / "missing.pem"),
        lambda: verify(path, rsa_public),
        lambda: verify(path, keys[0]),
    ):
        with pytest.raises(ConfigError, match="openssl"):
            call()
    for text in ("", "[]", '{"hash": "x"}', '{"a": NaN}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(RequestError, match="no certificate"):
            verify(tmp_path / "bad.json")


def test_through_the_command_line_without_a_workspace(tmp_path, keys):
    def run(*arguments):
        command = ["certificate", "verify", *map(str, arguments), "--json"]
        return CliRunner().invoke(app, command, env={"GENREC_HOME": str(tmp_path / "nowhere")})

    path = issue(REQUEST, FACTS, tmp_path, keys[0])
    found = run(path, "--public-key", keys[1])
    assert found.exit_code == 0
    assert json.loads(found.stdout)["signer_known"] is True
    path.write_text(path.read_text().replace("tracer", "retrain"))
    found = run(path)
    assert found.exit_code == 1
    assert json.loads(found.stdout)["ok"] is False
    assert "it was changed after it was issued" in str(found.exception)
