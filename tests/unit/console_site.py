"""The console over a small workspace: five accounts, one person forgotten, with certificate and report."""

import re
import shutil
from contextlib import contextmanager
from datetime import UTC, datetime

from fastapi.testclient import TestClient

from genrec.config import Settings
from genrec.console.accounts import Accounts
from genrec.console.app import make_app
from genrec.console.roles import Role
from genrec.data.sequences import load_dataset
from genrec.data.subjects import Subject
from genrec.models.bundle import save_bundle
from genrec.registry import open_registry
from genrec.report.page import write_report
from genrec.report.summary import Summary
from genrec.requests import certificates
from genrec.requests.intake import submit, verify
from genrec.requests.store import open_ledger
from genrec.workspace import params_yaml
from tests.unit.past import migrated

NOW = datetime.now(UTC)
PASSWORD = "correct horse battery"
ACCOUNTS = {"rita": "requester", "rob": "requester", "vera": "verifier", "vic": "verifier", "oscar": "operator"}


class Site:
    """`app` runs on `workspace`, whose champion is `bundle`; nights asked of Prefect are counted in `asked`."""

    def __init__(self, home, shop, params, bundle=None, **limits):
        shutil.copytree(shop.root, home)
        (home / "params.yaml").write_text(params_yaml(params))
        self.workspace = Settings(home=home, pseudonym_key="key").workspace
        if bundle:
            self._champion(bundle)
        self.ledger = open_ledger(self.workspace)
        self.dataset = load_dataset(self.workspace.prepared)
        self._users = iter(self.dataset.user_ids)
        self._forget()
        self.accounts = Accounts(self.workspace.console_users)
        for name, role in ACCOUNTS.items():
            self.accounts.add(name, Role(role), PASSWORD)
        self.asked: list[None] = []
        self.app = make_app(self.workspace, lambda: self.asked.append(None), **limits)

    def _champion(self, bundle) -> None:
        home = self.workspace.root
        self.workspace.mlruns.mkdir()
        shutil.copy(migrated(), self.workspace.mlruns / "mlflow.db")
        save_bundle(bundle, home / "bundle")
        registry = open_registry(self.workspace)
        registry.promote(registry.register(home / "bundle", metrics={}, params={}, tags={"method": "base"}), None)

    def _forget(self) -> None:
        """What a night leaves of a person's request, but for the models."""
        self.forgotten = self.next_user()
        self.fulfilled = self.request(subject=Subject("user", self.forgotten), verified=True)
        batch = self.ledger.claim(now=NOW)
        self.night = batch.id
        methods = {self.fulfilled: "retrain"}
        self.ledger.fulfil(batch.id, methods, now=NOW, data_version="d2", model_version="2")
        facts = certificates.CertificateFacts("d1", "d2", "h1", "h2", "1", "2", ())
        request = self.ledger.get(self.fulfilled)
        self.certificate = certificates.issue(request, facts, self.workspace.certificates, None)
        summary = Summary(outcome="promoted", batch_id=batch.id, started_at=NOW, finished_at=NOW)
        self.report = write_report(summary, self.workspace.reports / "nights" / batch.id)

    def next_user(self) -> str:
        """The id of a person whom nobody has asked about."""
        return next(self._users)

    def request(self, by="rita", subject=None, verified=False, now=NOW) -> str:
        """A request of `by`: about the next person when no subject is given."""
        subject = subject or Subject("user", self.next_user())
        stored = submit(self.workspace, subject, now=now, requested_by=by)
        if verified:
            verify(self.workspace, stored.id, now=now, verifier="vic", how="a letter")
        return stored.id

    def close(self, request_id) -> None:
        self.ledger.cancel(request_id, now=NOW, reason="the test is over")

    @contextmanager
    def open(self, *arguments, **options):
        """Such a request, which the end of the block cancels."""
        request_id = self.request(*arguments, **options)
        yield request_id
        if self.ledger.get(request_id).state != "cancelled":
            self.close(request_id)


class Visitor(TestClient):
    """A browser: it follows nothing, keeps cookies, and fills the forms of the pages that it gets."""

    def __init__(self, site, name=None):
        super().__init__(site.app, base_url="http://127.0.0.1", follow_redirects=False)
        if name:
            assert self.log_in(name).status_code == 303

    def log_in(self, name, password=PASSWORD):
        return self.fill("/login", name=name, password=password, page="/login")

    def token(self, page="/requests/new") -> str:
        return re.search(r'name="csrf" value="(\w+)"', self.get(page).text)[1]

    def fill(self, path, page="/requests/new", **fields):
        """POST a form with the token of `page`."""
        return self.post(path, data={"csrf": self.token(page), **fields})
