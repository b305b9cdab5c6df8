"""`genrec doctor` on a real workspace: each part is broken for real, and its line names it and the remedy."""

import os
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import text

from genrec import doctor
from genrec.config import Settings
from genrec.data.subjects import Subject
from genrec.models.bundle import save_bundle
from genrec.registry import open_registry
from genrec.requests.database import writing
from genrec.requests.lease import Lease
from genrec.requests.refusal import Known
from genrec.requests.store import open_ledger
from genrec.workspace import create
from tests.conftest import genrec
from tests.webhook import http_server

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
KNOWN = Known({"person-1"}, set(), {}, 100, lambda user, item: False)


@pytest.fixture(scope="module")
def sound(tmp_path_factory, bundle):
    """A workspace with pinned data, a champion, a request in the ledger and a signing key; never changed."""
    home = tmp_path_factory.mktemp("sound") / "shop"
    create(home)
    (home / "data").mkdir()
    (home / "data" / "interactions.csv").write_text("user_id,item_id\n")
    subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", "data"], cwd=home, check=True)
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (home / "signing.pem").write_bytes(key)
    (home / "signing.pem").chmod(0o600)
    workspace = Settings(home=home, signing_key=home / "signing.pem").workspace
    ledger = open_ledger(workspace)
    request = ledger.submit(Subject("user", user_id="person-1"), KNOWN, now=NOW)
    ledger.verify(request.id, now=NOW, verifier="desk")
    save_bundle(bundle, home / "candidate")
    registry = open_registry(workspace)
    number = registry.register(home / "candidate", metrics={}, params={}, tags={"batch_id": "", "attempt": "0"})
    registry.promote(number, None)
    return home


@pytest.fixture
def home(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "shop", symlinks=True)


def look(home, part, at=NOW, **settings):
    """The lines about one part."""
    return doctor.look_at(
        part, Settings(**{"home": home, "signing_key": home / "signing.pem"} | settings).workspace, at
    )


def assert_broken(home, part, says, remedy, state="broken", **settings):
    (found,) = [one for one in look(home, part, **settings) if one.state != "ok"]
    assert found.state == state
    assert says in found.says
    assert remedy in found.remedy
    assert "\n" not in found.says + found.remedy


def test_a_sound_workspace_and_then_a_broken_one_through_the_command_line(home):
    environment = {"GENREC_SIGNING_KEY": str(home / "signing.pem"), "GENREC_ALERT_WEBHOOK": "http://127.0.0.1:1"}
    fine = genrec(home, "doctor", **environment)
    lines = fine.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 16, fine.stdout
    (home / "data" / "interactions.csv").write_text("other\n")
    bad = genrec(home, "doctor", check=False, **environment)
    assert bad.returncode == 1
    (line,) = [line for line in bad.stdout.splitlines() if line.startswith("broken")]
    assert "data/ is not version" in line
    assert "dvc checkout data.dvc" in line


def test_files_and_parameters(home):
    with (home / "params.yaml").open("a") as file:
        file.write("trian: {epochs: 3}\n")
    assert_broken(home, "params", "Unknown key 'trian'. Known keys near it: train", "params.yaml")
    (home / "dvc.yaml").unlink()
    assert_broken(home, "workspace", "dvc.yaml", "genrec init")
    (home / "data.dvc").unlink()
    assert_broken(home, "data", "the data is not tracked", "genrec data fetch")


def test_one_broken_part_does_not_hide_the_others(home):
    (home / "params.yaml").write_text("seed: -1\n")
    (home / "signing.pem").chmod(0o644)
    states = {
        part: [one.state for one in look(home, part)] for part in ("params", "ledger", "keys", "requests", "lease")
    }
    assert states == {"params": ["broken"], "ledger": ["ok"], "keys": ["broken", "ok"], "requests": ["broken"],
                      "lease": ["ok"]}  # fmt: skip


def test_dvc_remote(home):
    assert look(home, "remote")[0].says == "no DVC remote is configured"
    configuration = home / ".dvc" / "config"
    without = configuration.read_text()
    for url, expected in (
        ("/nowhere/at/all", ("does not hold this data version", "dvc push", "warning")),
        ("nothing://here", ("`dvc status --cloud --json data.dvc` failed: ERROR", "dvc remote modify", "broken")),
    ):
        configuration.write_text(f"{without}    remote = store\n['remote \"store\"']\n    url = {url}\n")
        assert_broken(home, "remote", *expected[:2], state=expected[2])


def test_champion(home, tmp_path, sound):
    (deny,) = (sound / "mlruns").rglob("deny.json")
    good = deny.read_bytes()
    deny.write_bytes(b'["x"]\n')
    try:
        assert_broken(home, "champion", "deny.json is changed", "genrec models rollback")
    finally:
        deny.write_bytes(good)
    assert_broken(tmp_path, "champion", "no model was registered yet", "genrec train")
    with http_server(status=500) as (url, _):
        assert_broken(home, "champion", "the MLflow server answers 5", "GENREC_MLFLOW_URI", mlflow_uri=url)
    assert_broken(
        home, "champion", "does not answer (ConnectError)", "GENREC_MLFLOW_URI", mlflow_uri=f"http://127.0.0.1:{free()}"
    )


def test_alerts(home):
    says = "alerts go nowhere: nobody hears of a failed night"
    assert_broken(home, "alerts", says, "Set GENREC_ALERT_WEBHOOK", state="warning", alert_webhook=None)
    assert [one.state for one in look(home, "alerts", alert_webhook="http://127.0.0.1:1")] == ["ok"]


def free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def change(home, statement: str) -> None:
    with writing(open_ledger(Settings(home=home).workspace).engine) as session:
        session.execute(text(statement))


def test_ledger_and_audit_chain(home):
    change(home, "UPDATE audit SET event = 'other' WHERE seq = 2")
    assert_broken(home, "audit", "Audit row 2 is broken", "backup")
    change(home, "UPDATE alembic_version SET version_num = '0001'")
    assert_broken(home, "ledger", "its schema is 0001, not", "genrec requests list")
    url = f"postgresql+psycopg://nobody@127.0.0.1:{free()}/ledger"
    assert_broken(home, "ledger", "OperationalError", "GENREC_LEDGER_URL", ledger_url=url)


def test_keys(home):
    (home / "var" / "pseudonym.key").chmod(0o640)
    assert_broken(home, "keys", "pseudonym.key has mode 640: others can read it. Run chmod 600", "the file")
    (home / "var" / "pseudonym.key").chmod(0o600)
    (home / "signing.pem").write_text("no key")
    assert_broken(home, "keys", "Signing key", "GENREC_SIGNING_KEY")
    assert_broken(home, "keys", "not signed", "GENREC_SIGNING_KEY", state="warning", signing_key=None)


def test_disk(home, monkeypatch):
    monkeypatch.setattr(doctor, "FREE_BYTES", 10**18)
    assert_broken(home, "disk", "GB free", "genrec purge run")


def test_requests(home):
    assert look(home, "requests")[0].says == "1 open, none near its due date"
    assert_broken(home, "requests", "1 due soon: r-", "genrec night", state="warning", at=NOW + timedelta(days=25))
    assert_broken(home, "requests", "1 overdue: r-", "genrec night", at=NOW + timedelta(days=31))


def test_lease(home):
    engine = open_ledger(Settings(home=home).workspace).engine
    child = subprocess.Popen(["true"])
    child.wait()
    for pid, state in ((os.getpid(), "ok"), (child.pid, "broken")):
        with Lease.acquire(engine, "unlearn", f"command line {socket.gethostname()} {pid}", lambda: NOW, 120):
            (found,) = look(home, "lease", NOW + timedelta(seconds=20))
            assert found.state == state
    assert "Wait 100 s" in found.remedy
    with Lease.acquire(engine, "unlearn", f"nightly another-host {child.pid}", lambda: NOW, 120):
        assert look(home, "lease")[0].state == "ok", "a process of another host cannot be judged from here"


def test_last_night(home):
    ledger = open_ledger(Settings(home=home).workspace)
    assert look(home, "last night")[0].state == "ok"
    batch = ledger.claim(now=NOW)
    assert_broken(home, "last night", f"{batch.id} is open at the stage 'claimed'", "genrec night")
    with Lease.acquire(ledger.engine, "unlearn", "nightly host 1", lambda: NOW, 120):
        assert look(home, "last night")[0].state == "ok"
    ledger.set_stage(batch.id, "failing", {"outcome": "held", "attempts": []}, now=NOW)
    ledger.fail(batch.id, "gates", now=NOW)
    assert_broken(home, "last night", f"{batch.id} is held", f"reports/nights/{batch.id}/index.html")


def test_prefect(home, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert_broken(home, "prefect", "without a server", "PREFECT_API_URL", gpu_deployment="gpu/gpu")
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free()}/api")
    assert_broken(home, "prefect", "does not answer (ConnectError)", "PREFECT_API_URL")
