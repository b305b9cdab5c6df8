"""Every shell block of the documentation runs, as on its page: what is not run says so in its first line.

The tutorial is in test_newcomer.py, the README's two commands in test_demo.py, and the page about a model of one's own
in tests/integration/test_bring_a_model.py. What these pages do is tested elsewhere; here, that their commands do it.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import boto3
import httpx
import pandas as pd
import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy import create_engine

from genrec.config import Params, Settings
from genrec.data.simulator import simulate
from genrec.data.subjects import Subject
from genrec.data.tables import write_tables
from genrec.requests.intake import submit
from tests.conftest import TINY, copied, set_params
from tests.plugin import install_example, path_with
from tests.servers import free_port
from tests.snippets import PAGES, ROOT, blocks, runnable
from tests.terminal import Terminal, filled

ELSEWHERE = {
    "docs/tutorial.md": "tests/e2e/test_newcomer.py",
    "docs/how-to/bring-a-model.md": "tests/integration/test_bring_a_model.py",
    "docs/how-to/serve.md": "tests/unit/test_server.py",
}
NOT_RUN = {
    "README.md": ["it takes hours, and data of others", "it takes minutes"],
    "deploy/README.md": ["it takes a cluster"],
    "docs/how-to/compose.md": ["it takes a Docker daemon"] * 3,
    "docs/how-to/console.md": ["it installs packages"],
    "docs/how-to/gates.md": ["it takes minutes"],
    "docs/how-to/kubernetes.md": ["it takes a cluster", "it takes a Docker daemon"],
    "docs/how-to/postgres-s3.md": ["it installs packages", "it takes a database and a bucket of yours"],
    "docs/tutorial.md": ["it installs what they run in"],
}
PASSWORD = "correct horse battery\n"


@dataclass(frozen=True)
class Shop:
    """A workspace after its first night, which forgot one person, and a terminal in it."""

    terminal: Terminal
    request: str

    @property
    def home(self) -> Path:
        return self.terminal.folder

    def person(self, number: int) -> str:
        rows = pd.read_parquet(self.home / "prepared" / "interactions.parquet")
        return sorted(rows[rows.split == "train"].user_id.unique())[number]

    def asked(self, number: int) -> str:
        """A new request about another person who is there, and its id."""
        return json.loads(self.terminal.run(f"genrec --quiet forget user {self.person(number)} --json"))["id"]

    def unchecked(self, number: int) -> str:
        """The same, as the console takes it in: nobody has checked yet who asks."""
        workspace = Settings(home=self.home).workspace
        return submit(workspace, Subject("user", self.person(number)), now=datetime.now(UTC)).id


def page(name: str) -> list[str]:
    return runnable(ROOT / name)


@pytest.fixture(scope="module")
def readme(trained, tmp_path_factory) -> tuple[Shop, str]:
    """The shop that "Your own data" of the README makes, with certificates signed by the key of docs/concepts, and
    what it printed. The tables are those of `trained`, so DVC takes all stages before the adapter from its cache.
    """
    root = tmp_path_factory.mktemp("howto")
    params = Params.model_validate(TINY)
    (root / "my-tables").mkdir()
    write_tables(tables := simulate(params.data.simulated, params.seed), root / "my-tables")
    rows = pd.read_parquet(trained / "prepared" / "interactions.parquet")
    history = ",".join(tables.items["item_id"].to_pylist()[:3])
    values = {"SOME_ID": sorted(rows[rows.split == "train"].user_id)[0], "ID,ID,ID": history}
    terminal = Terminal(root)
    terminal.run(page("docs/concepts/certificate.md")[1])
    _, own_data, _ = page("README.md")
    begin, rest = own_data.split("cd shop\n")
    printed = terminal.run(f"{begin}cd shop\n")
    set_params(root / "shop", train={**TINY["train"], "epochs": 8})
    shutil.copytree(trained / ".dvc" / "cache", root / "shop" / ".dvc" / "cache")
    shutil.copy(trained / "dvc.lock", root / "shop")
    printed += terminal.run(filled(rest, values))
    (request,) = json.loads(terminal.run("genrec requests list --json"))
    return Shop(terminal, request["id"]), printed


@pytest.fixture(scope="module")
def shop(readme) -> Shop:
    return readme[0]


@pytest.fixture(scope="module")
def scheduled(trained, tmp_path_factory):
    """A terminal in a workspace of its own, with the Prefect server of the first block of docs/how-to/schedule.md."""
    root, port = tmp_path_factory.mktemp("scheduled"), free_port()
    copied(trained, root / "shop")
    terminal = Terminal(
        root / "shop", PREFECT_HOME=str(root / "prefect"), PREFECT_SERVER_API_PORT=str(port), URL=f"127.0.0.1:{port}",
        PREFECT_WORKER_QUERY_SECONDS="1",
    )  # fmt: skip
    server = page("docs/how-to/schedule.md")[0]
    with terminal.keep(server, lambda: httpx.get(f"http://127.0.0.1:{port}/api/health").is_success):
        yield terminal


def rollback(shop: Shop) -> None:
    go_back, again, lineage = page("docs/how-to/rollback.md")
    said = shop.terminal.run(
        filled(go_back, {"7": "1"}), refused=["genrec models rollback", "genrec models rollback 1"]
    )
    assert said.count("RegistryError: Version 1 is older than 1 fulfilled requests") == 2
    assert f"reapplied: {json.dumps([shop.request])}" in shop.terminal.run(filled(again, {"7": "1"}))
    told = shop.terminal.run(filled(lineage, {"7": "1", "REQUEST": shop.request}))
    assert told.count(shop.request) >= 1


def gates(shop: Shop) -> None:
    (power,) = page("docs/how-to/gates.md")
    assert "user-nll" in shop.terminal.run(power)


def console(shop: Shop) -> None:
    start, token = page("docs/how-to/console.md")
    *accounts, serve = start.splitlines()
    for line in accounts:
        assert "role: " in shop.terminal.run(line, typed=PASSWORD)
    port = free_port()
    with shop.terminal.keep(f"{serve} --port {port}", lambda: httpx.get(f"http://127.0.0.1:{port}/login")):
        key = shop.terminal.run(token).strip().removeprefix("token: ")
        answer = httpx.get(
            f"http://127.0.0.1:{port}/api/v1/requests", headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        assert answer.is_success
        assert shop.request in answer.text


def calibration(shop: Shop) -> None:
    (block,) = page("docs/concepts/calibration.md")
    assert shop.terminal.run(block).count("ucan_plus") == 2


def certificate(shop: Shop) -> None:
    check, _, chain = page("docs/concepts/certificate.md")
    names = {"FILE": f"reports/certificates/{shop.request}.json", "signing-public.pem": "../signing-public.pem"}
    assert shop.terminal.run(filled(check, names)).count("ok: True") == 2
    head = json.loads(shop.terminal.run("genrec audit verify --json"))["head"]
    said = shop.terminal.run(filled(chain, {"HASH": head, "REQUEST": shop.request}))
    assert said.count(f"head: {head}") == 2
    assert "fulfilled" in said


def semantic_ids(shop: Shop) -> None:
    report, figures = page("docs/concepts/semantic-ids.md")
    assert "collision_share" in shop.terminal.run(report)
    said = shop.terminal.run(figures)
    assert "artefacts/metrics.json" in said
    assert (shop.home / "dvc_plots" / "index.html").stat().st_size > 1000


def night(shop: Shop) -> None:
    run, requests, checked = page("docs/operations/night.md")
    assert "Outcome: nothing to do." in shop.terminal.run(run)
    request = shop.asked(3)
    said = shop.terminal.run(filled(requests, {"REQUEST": request}))
    assert "state: cancelled" in said
    events = json.loads(shop.terminal.run(f"genrec audit list --about {request} --json"))
    assert [one["event"] for one in events][-5:] == ["extended", "held", "queued", "breach", "cancelled"]
    for line in checked.splitlines():
        request = shop.unchecked(4)
        shop.terminal.run(filled(line, {"REQUEST": request}))
        if " verify " in line:
            shop.terminal.run(f"genrec requests cancel {request}")
        told = json.loads(shop.terminal.run("genrec requests list --json"))
        state = "cancelled" if " verify " in line else "rejected"
        assert [one["state"] for one in told if one["id"] == request] == [state]


def report(shop: Shop) -> None:
    (block,) = page("docs/operations/report.md")
    assert "ok: True" in shop.terminal.run(filled(block, {"REQUEST": shop.request}))


def purge(shop: Shop) -> None:
    (block,) = page("docs/operations/purge.md")
    assert shop.terminal.run(block).count("old versions that hold what was forgotten") == 2
    listed = json.loads(shop.terminal.run("genrec purge list --json"))
    assert "1" in {item["name"] for items in listed.values() for item in items if item["kind"] == "version"}


def alerts(shop: Shop) -> None:
    (block,) = page("docs/operations/alerts.md")
    assert shop.terminal.run(block)


def faults(shop: Shop) -> None:
    (block,) = page("docs/operations/faults.md")
    assert "broken" not in shop.terminal.run(block)


def compose(shop: Shop) -> None:
    (secrets,) = page("docs/how-to/compose.md")
    (root := shop.home.parent / "clone").mkdir()
    shutil.copytree(ROOT / "deploy", root / "deploy")
    Terminal(root).run(secrets)
    assert (root / "signing.pem").stat().st_mode & 0o777 == 0o600


PLAYED: dict[str, Callable[[Shop], None]] = {
    "docs/how-to/rollback.md": rollback,
    "docs/how-to/gates.md": gates,
    "docs/how-to/console.md": console,
    "docs/how-to/compose.md": compose,
    "docs/concepts/calibration.md": calibration,
    "docs/concepts/certificate.md": certificate,
    "docs/concepts/semantic-ids.md": semantic_ids,
    "docs/operations/night.md": night,
    "docs/operations/report.md": report,
    "docs/operations/purge.md": purge,
    "docs/operations/alerts.md": alerts,
    "docs/operations/faults.md": faults,
}
OF_ITS_OWN = {"README.md", "docs/how-to/schedule.md", "docs/how-to/gpu-worker.md", "docs/how-to/postgres-s3.md",
              "docs/how-to/extend.md"}  # fmt: skip


def test_a_block_that_is_not_run_says_why_and_every_other_page_is_followed():
    found = {str(path.relative_to(ROOT)): blocks(path) for path in PAGES}
    said = {name: [block.not_run for block in page if block.not_run] for name, page in found.items()}
    assert {name: reasons for name, reasons in said.items() if reasons} == NOT_RUN
    with_blocks = {name for name in found if page(name)}
    assert with_blocks == PLAYED.keys() | OF_ITS_OWN | ELSEWHERE.keys()
    assert all(f'"{Path(name).name}"' in (ROOT / test).read_text() for name, test in ELSEWHERE.items())


@pytest.mark.parametrize("name", PLAYED)
def test_the_commands_of_the_page_do_what_it_says(name, shop):
    PLAYED[name](shop)


def test_own_data_of_the_readme(readme):
    shop, printed = readme
    assert "Outcome: promoted. Champion 1 -> 2." in printed
    signed = json.loads((shop.home / "reports" / "certificates" / f"{shop.request}.json").read_text())
    assert signed["signature"]
    assert "recommendations" in printed


def test_on_schedule(scheduled):
    """docs/how-to/schedule.md and the same in the README, then docs/how-to/gpu-worker.md."""
    url = scheduled.environment["URL"]

    def online(pool: str) -> list:
        workers = httpx.post(f"http://{url}/api/work_pools/{pool}/workers/filter", json={}, timeout=60)
        return [worker for worker in workers.json() if worker["status"] == "ONLINE"] if workers.is_success else []

    _, start, now = page("docs/how-to/schedule.md")
    _, _, readme = page("README.md")
    deploy_and_run = filled(readme, {"127.0.0.1:4200": url})
    start = filled(start, {"127.0.0.1:4200": url})
    with scheduled.keep(start, lambda: online("cpu")):
        assert "Created flow run" in scheduled.run(now)
    first, second = page("docs/how-to/gpu-worker.md")
    with scheduled.keep(second, lambda: online("gpu")), scheduled.keep(first, lambda: len(online("cpu")) > 1):
        assert scheduled.environment["GENREC_GPU_DEPLOYMENT"] == "gpu/gpu"
    assert "Created flow run" in scheduled.run(deploy_and_run)


def test_postgres_and_s3(trained, postgres, tmp_path, monkeypatch):
    copied(trained, tmp_path / "shop")
    where = {"PGHOST": "127.0.0.1", "PGPORT": str(postgres.port), "PGUSER": "postgres"}
    terminal = Terminal(tmp_path / "shop", **where)
    terminal.environment["PATH"] += f"{os.pathsep}{postgres.programs}"
    ledger, objects = page("docs/how-to/postgres-s3.md")
    address = f"postgres@127.0.0.1:{postgres.port}"
    assert "No requests." in terminal.run(filled(ledger, {"genrec@127.0.0.1": address}))
    engine = create_engine(f"postgresql+psycopg://{address}/genrec")
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM requests").scalar_one() == 0
    engine.dispose()
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        s3 = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        s3.create_bucket(Bucket="genrec")
        terminal.environment |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        terminal.run(filled(objects, {"127.0.0.1:9000": f"{host}:{port}"}))
        assert s3.list_objects_v2(Bucket="genrec", Prefix="dvc/")["KeyCount"] > 5
        assert terminal.environment["GENREC_MLFLOW_ARTEFACTS"] == "s3://genrec/mlflow"
    finally:
        server.stop()


def test_a_package_of_ones_own(shop, tmp_path):
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "orders.csv").write_text("u1,p1,Lamp,Home\nu2,p1,Lamp,Home\nu1,p2,Rope,Sport\n")
    terminal = Terminal(tmp_path, PYTHONPATH=path_with(install_example(tmp_path / "site")))
    terminal.run("genrec init acme\ncd acme")
    (block,) = page("docs/how-to/extend.md")
    said = terminal.run(filled(block, {"DIR": "../orders"}), refused=["genrec doctor"])
    assert "acme-genrec 1.2.0" in said
