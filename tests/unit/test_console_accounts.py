"""Accounts, sessions and limits of the console: what ends them, what they refuse, and what the file gives away."""

import stat
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from genrec.cli import app
from genrec.config import Settings
from genrec.console.accounts import Accounts
from genrec.console.roles import Role
from genrec.console.sessions import DRAFTS, SESSION_S, Sessions
from genrec.console.throttle import Rate, Throttle
from genrec.data.subjects import Subject
from genrec.errors import ConfigError

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file with two accounts, one of them with a token; and the token."""
    path = tmp_path_factory.mktemp("accounts") / "var" / "console.users"
    accounts = Accounts(path)
    accounts.add("vera", Role.VERIFIER, PASSWORD)
    accounts.add("oscar", Role.OPERATOR, f"{PASSWORD} 2")
    return path, accounts.issue_token("vera")


@pytest.fixture
def accounts(file, tmp_path):
    """A copy of them, to be changed."""
    path = tmp_path / "console.users"
    path.write_bytes(file[0].read_bytes())
    path.chmod(0o600)
    return Accounts(path)


def test_the_file_is_the_owners_and_gives_no_secret_away(file):
    path, token = file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_text()
    assert token not in content
    assert PASSWORD not in content
    hashes = [line.split(":")[2] for line in content.splitlines()]
    assert len({one.split("$")[4] for one in hashes if "$" in one}) == 2  # salts
    assert repr(Accounts(path).read()).count("scrypt") == 0


def test_a_file_that_others_can_read_is_refused(accounts):
    accounts.path.chmod(0o640)
    for refused in (accounts.read, lambda: accounts.by_token("x"), lambda: accounts.by_password("vera", PASSWORD)):
        with pytest.raises(ConfigError, match=r"console.users has mode 640: others can read it. Run chmod 600"):
            refused()


def test_a_password_is_its_accounts_alone(accounts):
    assert accounts.by_password("vera", PASSWORD).role is Role.VERIFIER
    wrong = (("oscar", PASSWORD), ("vera", f"{PASSWORD} 2"), ("vera", ""), ("nobody", PASSWORD), ("", "\0" * 1000))
    assert [accounts.by_password(*pair) for pair in wrong] == [None] * len(wrong)


def test_a_new_token_ends_the_last_one_and_a_removed_line_the_account(accounts, file):
    old = file[1]
    assert accounts.by_token(old).name == "vera"
    new = accounts.issue_token("vera")
    assert (accounts.by_token(old), accounts.by_token(new).name) == (None, "vera")
    assert [accounts.by_token(one) for one in ("", "None", old[:-1])] == [None] * 3
    lines = [line for line in accounts.path.read_text().splitlines() if not line.startswith("vera:")]
    accounts.path.write_text("\n".join(lines))  # an editor that leaves no newline at the end
    assert (accounts.by_token(new), accounts.by_password("vera", PASSWORD)) == (None, None)
    accounts.add("vic", Role.VERIFIER, PASSWORD)
    assert list(accounts.read()) == ["oscar", "vic"]


@pytest.mark.parametrize(
    ("name", "password", "said"),
    [
        ("vera", PASSWORD, "'vera' exists"),
        *((name, PASSWORD, "no account name") for name in ("Vera", "a:b", "a\nb", "a" * 33, "", "1a", "a b")),
        ("rita", "short", "12 to 200 characters, not 5"),
        ("rita", "x" * 201, "not 201"),
    ],
)
def test_bad_names_and_passwords_are_refused(accounts, name, password, said):
    before = accounts.path.read_bytes()
    with pytest.raises(ConfigError, match=said):
        accounts.add(name, Role.REQUESTER, password)
    assert accounts.path.read_bytes() == before


@pytest.mark.parametrize(
    "line", ["vera", "rob:king:x", "rob:operator:secret", f"rob:token:{'0' * 64}", "vera:token:00"]
)
def test_a_line_that_is_none_is_named_without_what_it_holds(accounts, line):
    accounts.path.write_text(f"{accounts.path.read_text()}{line}\n")
    with pytest.raises(ConfigError, match=r"Line 4 of .*console.users is no account. Remove it") as said:
        accounts.read()
    assert "secret" not in str(said.value)


# --- sessions --------------------------------------------------------------------------------------------------------


class Clock:
    at = 1000.0

    def __call__(self):
        return self.at


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sessions(accounts, clock):
    return Sessions(b"key", accounts, clock)


def test_a_log_in_makes_a_new_session_and_a_log_out_ends_it(sessions, accounts):
    before = sessions.visit(None)
    planted = sessions.cookie(before)
    after = sessions.log_in(accounts.read()["vera"])
    assert before.sid != after.sid != sessions.log_in(accounts.read()["vera"]).sid
    assert before.csrf != after.csrf
    assert sessions.visit(planted).account is None
    cookie = sessions.cookie(after)
    assert sessions.visit(cookie) == after
    sessions.log_out(after)
    assert sessions.visit(cookie).account is None
    assert sessions.visit(cookie).sid == after.sid


def test_cookies_that_are_not_ours_are_a_strangers(sessions, accounts):
    cookie = sessions.cookie(sessions.log_in(accounts.read()["vera"]))
    sid, signature = cookie.split(".")
    others = Sessions(b"another key", accounts)
    foreign = others.cookie(others.log_in(accounts.read()["vera"]))
    for wrong in (
        None, "", "x", sid, cookie[:-1], f"{sid[:-1]}x.{signature}", f"{sid}.x{signature}", f"{sid}.", foreign,
    ):  # fmt: skip
        visit = sessions.visit(wrong)
        assert (visit.account, visit.sid == sid) == (None, False)


def test_a_session_ends_after_its_time_and_with_its_accounts_line(sessions, accounts, clock, monkeypatch):
    cookie = sessions.cookie(sessions.log_in(accounts.read()["vera"]))
    with monkeypatch.context() as set_back:  # a clock that is set back ends nothing, neither this one nor the machine's
        clock.at -= 60
        set_back.setattr("time.time", lambda: 0.0)
        assert sessions.visit(cookie).account.name == "vera"
    clock.at += 60 + SESSION_S - 1
    assert sessions.visit(cookie).account.name == "vera"
    whole = accounts.path.read_text()
    accounts.path.write_text(whole.replace("vera:verifier", "vera:operator"))
    assert sessions.visit(cookie).account.role is Role.OPERATOR  # the role is the file's, at once
    accounts.path.write_text("".join(line for line in whole.splitlines(True) if not line.startswith("vera:")))
    assert sessions.visit(cookie).account is None
    accounts.add("vera", Role.VERIFIER, PASSWORD)  # another line, another salt
    assert sessions.visit(cookie).account is None
    cookie = sessions.cookie(sessions.log_in(accounts.read()["vera"]))
    clock.at += SESSION_S
    assert sessions.visit(cookie).account is None


def test_forms_and_dry_runs_are_their_sessions_own(sessions, accounts):
    vera, oscar = (sessions.log_in(accounts.read()[name]) for name in ("vera", "oscar"))
    assert sessions.own_form(vera, vera.csrf)
    assert [sessions.own_form(vera, wrong) for wrong in (oscar.csrf, "", "é", vera.csrf[:-1])] == [False] * 4
    first = sessions.keep(vera, Subject("user", "ann"))
    assert sessions.kept(vera, first) == Subject("user", "ann")
    assert sessions.kept(oscar, first) is None
    assert "ann" not in repr(vars(sessions))
    later = [sessions.keep(vera, Subject("user", f"u{n}")) for n in range(DRAFTS)]
    assert (sessions.kept(vera, first), sessions.kept(vera, later[0])) == (None, Subject("user", "u0"))


def test_a_bucket_empties_and_fills_for_each_key_alone(clock):
    throttle = Throttle(Rate(3, 0.5), clock)
    assert [throttle.wait_s("a") for _ in range(5)] == [0, 0, 0, 2, 2]
    assert throttle.wait_s("b") == 0
    clock.at += 1
    assert throttle.wait_s("a") == 1
    clock.at += 1
    assert [throttle.wait_s("a") for _ in range(2)] == [0, 2]
    clock.at += 1000
    assert [throttle.wait_s("a") for _ in range(4)] == [0, 0, 0, 2]


# --- the command line ------------------------------------------------------------------------------------------------


def test_accounts_are_made_from_standard_input_and_tokens_are_printed_once(tmp_path):
    users = tmp_path / "secrets" / "users"
    environment = {"GENREC_HOME": str(tmp_path), "GENREC_CONSOLE_USERS": str(users)}

    def run(*arguments, given=""):
        return CliRunner().invoke(app, ["console", *arguments], input=given, env=environment)

    assert "no account yet" in str(run().exception)
    assert "Unknown role 'king'" in str(run("adduser", "vera", "--role", "king").exception)
    made = run("adduser", "vera", "--role", "verifier", given=f"{PASSWORD}\n")
    assert (made.exit_code, PASSWORD in made.output) == (0, False)
    assert "not 0" in str(run("adduser", "vic", "--role", "verifier").exception)
    token = run("token", "vera").output.split()[-1]
    accounts = Accounts(Settings(**{"console_users": users}).workspace.console_users)
    assert accounts.by_token(token) == accounts.by_password("vera", PASSWORD)
    assert "no account 'vic'" in str(run("token", "vic").exception)


def test_without_its_packages_the_console_says_how_to_install_them_in_a_clone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "itsdangerous", None)
    said = CliRunner().invoke(app, ["console"], env={"GENREC_HOME": str(tmp_path)}).exception
    assert str(said) == "The console needs itsdangerous. In your clone: pip install -c constraints.txt -e '.[console]'."


def test_the_console_and_the_server_can_run_side_by_side():
    ports = [
        next(option.default for option in get_command(app).commands[name].params if option.name == "port")
        for name in ("serve", "console")
    ]
    assert len(set(ports)) == 2
