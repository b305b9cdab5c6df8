"""Sessions of the console: a signed cookie that names one, and what the server remembers of it.

The cookie holds nothing but the signed random id of the session. Who it belongs to is remembered in this process, so a
log-out ends it, and so does a restart. It ends by itself SESSION_S seconds after the log-in, and as soon as the line of
the account changes. The cookie itself tells no time: a clock that is set back ends no session. A signed id of nobody,
in a cookie of its own, guards the log-in form; no log-in makes a session of it.
"""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from itsdangerous import BadSignature, Signer

from genrec.console.accounts import Account, Accounts
from genrec.data.subjects import Subject

SESSION_S = 3600
DRAFTS = 20


@dataclass(frozen=True)
class Visit:
    """Who asks. account: None before a log-in. csrf: what a form of this session must send back."""

    sid: str
    account: Account | None
    csrf: str


@dataclass(frozen=True)
class _Live:
    name: str
    password: str = field(repr=False)
    until: float
    drafts: "OrderedDict[str, Subject]" = field(default_factory=OrderedDict, repr=False)


class Sessions:
    """The sessions of one process. key: the secret of cookies and CSRF tokens. clock: seconds, of the wall."""

    def __init__(self, key: bytes, accounts: Accounts, clock: Callable[[], float] = time.time):
        self._key, self._accounts, self._clock = key, accounts, clock
        self._signer = Signer(key, salt="genrec.console", digest_method=hashlib.sha256)
        self._live: dict[str, _Live] = {}

    def visit(self, cookie: str | None) -> Visit:
        """The session of a cookie; a new one, of nobody, where there is none or it is not ours."""
        try:
            sid = self._signer.unsign(cookie or "").decode()
        except BadSignature:
            sid = secrets.token_urlsafe(32)
        return self._visit(sid)

    def cookie(self, visit: Visit) -> str:
        return self._signer.sign(visit.sid).decode()

    def log_in(self, account: Account) -> Visit:
        """A new session of the account."""
        now = self._clock()
        for ended in [sid for sid, one in self._live.items() if one.until <= now]:
            del self._live[ended]
        sid = secrets.token_urlsafe(32)
        self._live[sid] = _Live(account.name, account.password, now + SESSION_S)
        return self._visit(sid)

    def log_out(self, visit: Visit) -> None:
        self._live.pop(visit.sid, None)

    def own_form(self, visit: Visit, token: str) -> bool:
        """Whether a form with this CSRF token is one of the session."""
        return hmac.compare_digest(visit.csrf.encode(), token.encode())

    def keep(self, visit: Visit, subject: Subject) -> str:
        """Keep what a dry run was about until it is submitted; its id. Of more than DRAFTS the oldest goes."""
        drafts, draft = self._live[visit.sid].drafts, secrets.token_urlsafe(16)
        drafts[draft] = subject
        while len(drafts) > DRAFTS:
            drafts.popitem(last=False)
        return draft

    def kept(self, visit: Visit, draft: str) -> Subject | None:
        return self._live[visit.sid].drafts.get(draft)

    def _visit(self, sid: str) -> Visit:
        live, account = self._live.get(sid), None
        if live and live.until > self._clock():
            found = self._accounts.read().get(live.name)
            account = found if found and found.password == live.password else None
        return Visit(sid, account, hmac.new(self._key, b"csrf:" + sid.encode(), hashlib.sha256).hexdigest())
