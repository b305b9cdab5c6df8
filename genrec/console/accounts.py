"""Who may use the console: names, roles, passwords and API tokens, in one file that only its owner can read.

    vera:verifier:scrypt$16384$8$5$SALT$HASH      an account
    vera:token:SHA-256                            its API token: of several such lines the last one counts

The file is read anew at each use: a line that is removed ends its account at once. Passwords are hashed with scrypt
(RFC 7914) at a cost of OWASP's Password Storage Cheat Sheet; a token is 256 random bits, so a plain hash hides it.
"""

import hashlib
import hmac
import os
import re
import secrets
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from genrec.console.roles import Role
from genrec.errors import ConfigError
from genrec.secret import read_secret

NAME = r"[a-z][a-z0-9._-]{0,31}"
SHORTEST, LONGEST = 12, 200
"""Characters of a password."""
N, R, P = 2**14, 8, 5
_ACCOUNT = re.compile(
    rf"{NAME}:(?P<role>{'|'.join(Role)}):(?P<password>scrypt\$\d+\$\d+\$\d+\$[0-9a-f]{{32}}\$[0-9a-f]{{64}})"
)
_TOKEN = re.compile(rf"{NAME}:token:(?P<token>[0-9a-f]{{64}})")
_ONE_AT_A_TIME = threading.Lock()  # a password check takes 16 MiB and a tenth of a second: many at once would hurt


@dataclass(frozen=True)
class Account:
    """One person. password: as in the file. token: SHA-256 in hex, None without one."""

    name: str
    role: Role
    password: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


class Accounts:
    """The accounts in the file at `path`; no file is no accounts.

    Every method raises ConfigError for a line that is none and for a file that others than its owner could read.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, Account]:
        try:
            lines = read_secret(self.path).decode().splitlines()
        except FileNotFoundError:
            return {}
        found: dict[str, Account] = {}
        for number, line in enumerate(lines, 1):
            name, is_account, is_token = line.partition(":")[0], _ACCOUNT.fullmatch(line), _TOKEN.fullmatch(line)
            if is_account:
                found[name] = Account(name, Role(is_account["role"]), is_account["password"])
            elif is_token and name in found:
                found[name] = replace(found[name], token=is_token["token"])
            elif line:
                raise ConfigError(
                    f"Line {number} of {self.path} is no account. Remove it; genrec console adduser writes a new one."
                )
        return found

    def add(self, name: str, role: Role, password: str) -> Account:
        """Append an account. Raises ConfigError for a bad or taken name and for a password that is too short."""
        if not re.fullmatch(NAME, name):
            raise ConfigError(f"{name!r} is no account name. Use a-z, 0-9, . _ -, at most 32, a letter first.")
        if name in self.read():
            raise ConfigError(f"Account {name!r} exists. Remove its lines from {self.path} to make it anew.")
        if not SHORTEST <= len(password) <= LONGEST:
            raise ConfigError(f"A password has {SHORTEST} to {LONGEST} characters, not {len(password)}. Take another.")
        salt = secrets.token_bytes(16)
        account = Account(name, role, f"scrypt${N}${R}${P}${salt.hex()}${_scrypt(password, salt, N, R, P).hex()}")
        self._append(f"{name}:{role.value}:{account.password}\n")
        return account

    def issue_token(self, name: str) -> str:
        """A new API token of the account, in place of its last one. Raises ConfigError for an unknown account."""
        if name not in self.read():
            raise ConfigError(f"There is no account {name!r}. Make it: genrec console adduser {name} --role ROLE.")
        token = secrets.token_urlsafe(32)
        self._append(f"{name}:token:{_digest(token)}\n")
        return token

    def by_password(self, name: str, password: str) -> Account | None:
        """The account, None where name or password is wrong; both take the same time."""
        account = self.read().get(name)
        _, n, r, p, salt, expected = (account.password if account else _NOBODY).split("$")
        with _ONE_AT_A_TIME:
            found = _scrypt(password[: LONGEST + 1], bytes.fromhex(salt), int(n), int(r), int(p))
        return account if hmac.compare_digest(found, bytes.fromhex(expected)) else None

    def by_token(self, token: str) -> Account | None:
        digest = _digest(token)
        same = [one for one in self.read().values() if hmac.compare_digest(digest, one.token or "")]
        return same[0] if same else None

    def _append(self, line: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            line = f"\n{line}"  # somebody has edited it
        with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb") as file:
            file.write(line.encode())  # one write: two commands at once do not mix their lines


_NOBODY = f"scrypt${N}${R}${P}${'00' * 16}${'00' * 32}"


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=64 * 2**20, dklen=32)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
