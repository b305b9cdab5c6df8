"""Secrets stay secret, no pickle is loaded, and whatever a name or a reason says is text and nothing else."""

import ast
import logging
import os
import re
import shutil
from contextlib import chdir
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from markdown_it import MarkdownIt
from markupsafe import escape
from mlflow.utils.validation import _validate_metric_name
from sqlalchemy import inspect
from typer.testing import CliRunner

from genrec import alerts
from genrec.cli import app
from genrec.cli_bench import bench_workspace
from genrec.config import Settings
from genrec.data.prepare import prepare
from genrec.data.sequences import load_dataset
from genrec.data.subjects import Subject
from genrec.data.tables import Tables, read_tables, write_tables
from genrec.errors import ConfigError, OutageError, RegistryError, RequestError
from genrec.night import open_night
from genrec.registry import _metric_name, open_registry
from genrec.report.page import render
from genrec.report.summary import Attempt, Summary
from genrec.requests import certificates
from genrec.requests.audit import verify_chain
from genrec.requests.database import connect
from genrec.requests.intake import known_of
from genrec.requests.schema import Base
from genrec.rollback import rollback
from genrec.terminal import show
from tasks.artefacts import _report
from tests.unit.conftest import KEY
from tests.unit.past import Past
from tests.webhook import http_server

ROOT = Path(__file__).parents[2]
NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
HOSTILE = (
    "../../etc/passwd", "/etc/passwd", "'; DROP TABLE requests; --", "{{7*7}}", "{0.__class__}",
    "<script>alert(1)</script>", "$(touch pwned)", "`touch pwned`", "%s%n", "--help", "\u202egnp.exe",
    "a//b/..", "x" * 300,
)  # fmt: skip
UNSTORABLE = ("a\0b", "\ud800")
PSEUDONYM, PASSWORD, HOOK = "pseudonym-canary-7f3a", "password-canary-19c2", "hook-canary-55e0"


# --- no pickle, no shell ---------------------------------------------------------------------------------------------

SOURCES = [path for name in ("genrec", "tasks", "flows", "benchmarks") for path in (ROOT / name).rglob("*.py")]
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "torch.load", "torch.save", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load",
         "pd.read_pickle", "pandas.read_pickle"}  # fmt: skip
KEYWORDS = {"allow_pickle", "shell", "trust_remote_code"}


def faults(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (name for name in names if name.split(".")[0] in LOADERS)
        if isinstance(node, ast.Call):
            if (name := ast.unparse(node.func)) in CALLS:
                yield name
            yield from (f"{k.arg}=" for k in node.keywords if k.arg in KEYWORDS and ast.unparse(k.value) != "False")


def test_no_line_of_ours_unpickles_or_calls_a_shell():
    assert len(SOURCES) > 100
    found = {path.relative_to(ROOT): list(faults(ast.parse(path.read_text()))) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from joblib import load", "torch.load(p)", "np.load(p, allow_pickle=True)", "run(c, shell=1)"],
)  # fmt: skip
def test_the_scan_finds_what_it_looks_for(line):
    assert list(faults(ast.parse(line)))


def test_mlflow_refuses_a_pickled_model(tmp_path):
    import mlflow
    from mlflow.exceptions import MlflowException

    class Pickled(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input):
            return model_input

    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
        mlflow.pyfunc.save_model(tmp_path / "model", python_model=Pickled(), pip_requirements=[])
    with pytest.raises(MlflowException, match=r"(?i)pickle"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_file_that_others_can_read_is_refused(tmp_path, mode):
    signing = tmp_path / "signing.pem"
    signing.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    workspace = Settings(home=tmp_path, pseudonym_key=None).workspace
    pseudonym = workspace.var / "pseudonym.key"
    key = workspace.pseudonym_key()
    for path, read in ((signing, lambda: certificates.load_signing_key(signing)), (pseudonym, workspace.pseudonym_key)):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"{path.name} has mode {mode:o}: .*chmod 600 {path.name}"):
            read()
        path.chmod(0o400)
        read()
    assert workspace.pseudonym_key() == key


def test_settings_and_errors_about_them_do_not_show_secrets(tmp_path):
    url = f"postgresql://genrec:{PASSWORD}@127.0.0.1:1/ledger"
    settings = Settings(
        home=tmp_path, pseudonym_key=PSEUDONYM, ledger_url=url, mlflow_uri=url, alert_webhook=f"https://x/{HOOK}"
    )
    said = [repr(settings), str(settings), settings.model_dump_json(include={"pseudonym_key"})]
    for bad in (url, f"nosuch://{PASSWORD}@x", f"{PASSWORD}", f"postgres://u:{PASSWORD}@h/d"):
        try:
            with connect(bad).connect():
                pass
        except Exception as error:
            said.append(f"{error!r} {error}")
    assert len(said) == 7
    for canary in (PSEUDONYM, PASSWORD, HOOK):
        assert canary not in " ".join(said[:4])
    assert PASSWORD not in " ".join(said)


def test_an_mlflow_server_that_is_not_there_is_named_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = Settings(home=tmp_path, mlflow_uri=f"http://genrec:{PASSWORD}@127.0.0.1:1")
    with pytest.raises(OutageError, match=r"http://127\.0\.0\.1:1/") as caught:
        open_registry(settings.workspace)
    assert PASSWORD not in str(caught.value)


def test_the_webhooks_url_is_not_logged(tmp_path, caplog):
    with http_server() as (url, bodies), caplog.at_level(logging.DEBUG):
        httpx.post(f"{url}/{HOOK}", json={}, timeout=alerts.TIMEOUT_S)
        assert len(bodies) == 1
    assert HOOK not in "".join(record.getMessage() for record in caplog.records if record.name == "httpx")


# --- a shop whose names are attacks ----------------------------------------------------------------------------------


def hostile_tables(shop):
    """The shop with users, items, titles and concepts renamed."""
    tables = read_tables(shop / "data")
    concepts = sorted({c for tags in tables.items["concepts"].to_pylist() for c in tags})
    users, items = (sorted(set(tables.interactions[name].to_pylist())) for name in ("user_id", "item_id"))
    user = dict(zip(users, (f"person {name}" for name in HOSTILE), strict=False))
    item, concept = (dict(zip(names, HOSTILE, strict=False)) for names in (items, concepts))

    def renamed(table, name, new):
        column = pa.array([new.get(v, v) for v in table[name].to_pylist()], pa.string())
        return table.set_column(table.column_names.index(name), name, column)

    rows = renamed(renamed(tables.interactions, "user_id", user), "item_id", item)
    catalogue = renamed(tables.items, "item_id", item)
    titles = pa.array([HOSTILE[i % len(HOSTILE)] for i in range(len(catalogue))], pa.string())
    tags = [[concept.get(c, c) for c in tags] for tags in catalogue["concepts"].to_pylist()]
    catalogue = catalogue.set_column(1, "title", titles).set_column(3, "concepts", pa.array(tags))
    return Tables(rows, catalogue), [concept[c] for c in concepts if c in concept]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory, shop, bundle, params):
    """A workspace with such names that forgot some of each kind, with a certificate each; and what lay around it."""
    root = tmp_path_factory.mktemp("attacked")
    (root / "shop" / "data").mkdir(parents=True)
    tables, concepts = hostile_tables(shop.root)
    write_tables(tables, root / "shop" / "data")
    prepare(root / "shop" / "data", root / "shop" / "prepared", params, KEY)
    signing = root / "signing.pem"
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    signing.write_bytes(key)
    signing.chmod(0o600)
    settings = {"pseudonym_key": PSEUDONYM, "signing_key": signing, "alert_webhook": f"http://127.0.0.1:1/{HOOK}"}
    (root / "work").mkdir()
    past = Past(root / "work" / "home", root / "shop", bundle, params, **settings)
    past.train(NOW)
    users = [name for name in names(past, "user_id") if name.startswith("person ")][:4]
    items = [name for name in HOSTILE if name in names(past, "item_id")][:4]
    subjects = [
        *(Subject("user", u) for u in users), *(Subject("item", item_id=i) for i in items),
        Subject("concept", concept=concepts[0]),
    ]  # fmt: skip
    requests = past.night(*subjects, now=NOW)
    facts = certificates.CertificateFacts("d1", "d2", "h1", "h2", "1", "2", ())
    for request in requests:
        certificates.issue(past.ledger.get(request), facts, past.workspace.certificates, signing)
    return SimpleNamespace(past=past, root=root, subjects=subjects, requests=requests, users=users, key=key)


def names(past, column):
    return dict.fromkeys(pq.read_table(past.workspace.prepared / "interactions.parquet")[column].to_pylist())


def test_a_night_about_hostile_names_ends_like_any_other(attacked):
    past, ledger = attacked.past, attacked.past.ledger
    assert len(attacked.users) == 4
    assert {request.state for request in ledger.requests()} == {"fulfilled"}
    assert len(ledger.requests()) == len(attacked.subjects) == 9
    assert set(Base.metadata.tables) <= set(inspect(ledger.engine).get_table_names())
    verify_chain(ledger.engine)
    assert not names(past, "user_id").keys() & set(attacked.users)
    assert past.champion == "2"


def test_names_make_no_files_and_certificates_lie_where_they_belong(attacked):
    home = attacked.past.workspace.root
    assert {path.name for path in attacked.root.iterdir()} == {"shop", "work", "signing.pem"}
    assert [path.name for path in home.parent.iterdir()] == [home.name]
    assert [path for path in attacked.root.rglob("*") if "pwned" in path.name or "passwd" in path.name] == []
    written = sorted(path.name for path in attacked.past.workspace.certificates.iterdir())
    assert written == sorted(f"{request}.json" for request in attacked.requests)
    assert all(certificates.verify(attacked.past.workspace.certificates / name).ok for name in written)


def test_keys_and_forgotten_people_are_in_no_file_that_a_night_leaves(attacked):
    home = attacked.past.workspace.root
    body = attacked.key.splitlines()[1]
    secret = [PSEUDONYM.encode(), HOOK.encode(), body]
    raw = [user.encode() for user in attacked.users]
    stores = [home / "mlruns", home / "reports", home / "var"]
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 30
    for path in files:
        content = path.read_bytes()
        assert not [one for one in secret if one in content], path
        if any(path.is_relative_to(store) for store in stores):
            assert not [one for one in raw if one in content], path


def test_commands_show_no_secret(attacked, monkeypatch):
    home = attacked.past.workspace.root
    environment = {
        "GENREC_HOME": str(home), "GENREC_PSEUDONYM_KEY": PSEUDONYM, "GENREC_ALERT_WEBHOOK": f"http://127.0.0.1:1/{HOOK}",
        "GENREC_SIGNING_KEY": str(attacked.root / "signing.pem"),
    }  # fmt: skip
    broken = {"GENREC_LEDGER_URL": f"postgresql://genrec:{PASSWORD}@127.0.0.1:1/ledger"}
    said = ""
    for command, extra in (
        ("requests list", {}), ("alerts", {}), ("models list", {}), ("requests list", broken), ("doctor", broken)
    ):  # fmt: skip
        result = CliRunner().invoke(app, [*command.split(), "--json"], env=environment | extra)
        said += f"{result.output} {result.exception!r} {result.exception}"
    assert len(said) > 5000
    for canary in (PSEUDONYM, PASSWORD, HOOK, attacked.key.splitlines()[1].decode()):
        assert canary not in said


@pytest.mark.parametrize("text", [*HOSTILE, *UNSTORABLE, "", "²"])
def test_a_version_batch_or_request_of_any_name_is_unknown_and_nothing_else(attacked, text):
    workspace = attacked.past.workspace
    assert attacked.past.registry.version(text) is None
    with pytest.raises(RegistryError, match="No version"):
        rollback(workspace, text or "nothing", now=NOW)
    with pytest.raises(RequestError, match=r"Unknown|holds|is not open"):
        open_night(workspace, text)
    with pytest.raises(RequestError, match=r"Unknown|holds"):
        attacked.past.ledger.get(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_reasons_are_kept_as_they_are(attacked, text):
    ledger, data = attacked.past.ledger, load_dataset(attacked.past.workspace.prepared)
    request = ledger.submit(Subject("item", item_id=data.item_ids[-1]), known_of(data), now=NOW, idempotency_key=text)
    held = ledger.hold(request.id, now=NOW, reason=text)
    assert held.reason == text
    ledger.cancel(request.id, now=NOW, reason=text)
    verify_chain(ledger.engine)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_is_text_in_the_report_and_in_mlflows_metrics(text):
    _validate_metric_name(_metric_name(f"sh@10 concept: {text}"))
    summary = Summary(
        outcome="held", reason=text, started_at=NOW, finished_at=NOW, champion_before="1", champion_after="1",
        data_version_before="d", data_version="d", batch_id="b-1",
        attempts=(Attempt(group=text, method=text, verdict="FAIL", reason=text, wall_s=1.0),),
    )  # fmt: skip
    page = render(summary)
    assert page.count(str(escape(text))) >= 4
    assert "<script>alert(1)" not in page


@pytest.mark.parametrize(
    "text", [*HOSTILE, "[here](http://a)", "**x** _y_ # z", "![i](http://a)", "a | b\n\n# c", "&lt;b>"]
)
def test_a_reason_is_no_markup_of_prefects_markdown(text):
    """The mark-up is cmark's own, so that what a browser would get is the text."""
    summary = Summary(outcome="held", reason=text, started_at=NOW, finished_at=NOW, batch_id="b-1")
    written = _report(summary.model_dump(mode="json", by_alias=True))
    shown = MarkdownIt("commonmark").enable("table").render(written)
    verdict, page = re.fullmatch(r"<p>(.*)</p>\n<p>The page: (.*)</p>\n", shown, re.DOTALL).groups()
    assert unescape(verdict.partition("</strong> ")[2]) == " ".join(text.split())
    assert not re.search("<(?!/?(p|strong|code)>)", shown)
    assert page == "<code>reports/nights/b-1/index.html</code>."


def test_a_data_folder_of_any_name_is_pinned_and_runs_nothing(attacked, tmp_path, shop):
    name = "--force $(touch pwned); `touch pwned` {{7*7}} %s"
    home, source = tmp_path / "home", tmp_path / "sources" / name
    shutil.copytree(shop.root / "data", source)
    home.mkdir()
    shutil.copy(attacked.past.workspace.params_file, home / "params.yaml")
    with chdir(tmp_path):
        workspace = bench_workspace(Settings(home=home).workspace, Path("sources") / ".." / "sources" / name)
    assert workspace.root == home / "var" / "bench" / "workspaces" / f"tables-{name}"
    assert workspace.data_pin.exists()
    assert list(tmp_path.rglob("pwned")) == []


def test_a_title_is_no_markup_of_the_terminal(capsys):
    show(None, False, [{"title": "[/x] [red]loud[/red] [link=http://a]b"}])
    assert "[/x] [red]loud[/red] [link=http://a]b" in capsys.readouterr().out
