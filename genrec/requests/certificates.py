"""Certificates: what was done about one request, with the figures, as canonical JSON that can be checked offline.

`hash` is the SHA-256 of the canonical JSON of everything but `hash` and `signature`; the Ed25519 signature is over the
ASCII text of that hash. The public key inside a certificate only shows that it is whole: who signed it is known by
comparing with a key from elsewhere.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from genrec.data.files import write_atomically
from genrec.errors import ConfigError, RequestError
from genrec.requests.audit import canonical_json
from genrec.requests.ledger import Request
from genrec.secret import read_secret

SCHEMA_VERSION = 2
"""Version 1 did not say which gates block, what the figure of a gate is, and whether the weights were trained again."""
_EXACT = (
    "The adapter was trained again without the forgotten data and the backbone never holds user data, so the weights "
    "named here were not computed from it."
)
_APPROXIMATE = (
    "The weights were edited, not trained again without the data. The figures below bound what the named audits could "
    "detect with the stated numbers of examples; a stronger attack may detect more."
)
_UNTOUCHED = (
    "The prepared tables held no row of it when the night began, and the weights named here were trained without one, "
    "so they were left as they are. Rows of the raw tables outside the prepared ones were erased, if there were any."
)
_ALWAYS = (
    "This covers the data version and the bundle named here. It does not cover copies outside this system, earlier "
    "model versions until they are purged, or recommendations that were already shown.",
    "Suppression, from `suppressed_at` on, hides results; it is not forgetting. The figures were taken without it.",
)
_CLAIMS = {"retrain": _EXACT, "untouched": _UNTOUCHED}
"""What is certified of a method that does not edit the weights."""


@dataclass(frozen=True)
class GateFigure:
    """One gate of the evaluation: a figure, its interval, its limit (a number or a range), its number of examples.

    A `rule` of `high <= limit`, `low >= limit` or `inside limit` is one that `verify` can check. figure: what was
    measured, in words. Gates that are not `blocking` inform only.
    """

    name: str
    verdict: str
    value: float | None
    low: float | None
    high: float | None
    limit: float | tuple[float, float] | None
    n: int | None
    rule: str
    figure: str = ""
    blocking: bool = True


@dataclass(frozen=True)
class CertificateFacts:
    """What a certificate says besides its request: versions and bundle hashes before and after, and the gates.

    third_party: package and version of what is not genrec's own, by `method` or `gate <name>`. exact: the model after
    was trained again without the data, so that a blocking gate need only not FAIL; else every one of them must PASS.
    """

    data_version_before: str
    data_version_after: str
    bundle_hash_before: str
    bundle_hash_after: str
    model_version_before: str
    model_version_after: str
    gates: tuple[GateFigure, ...]
    third_party: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False


@dataclass(frozen=True)
class Verification:
    """The result of `verify`; `problems` are sentences. `signature`: `valid`, `invalid` or `absent`.

    not_recomputed: gates whose verdict needs more than the figures of the certificate; the others were recomputed.
    `signer_known` says that the signature was checked with a key that did not come from the certificate itself.
    """

    request_id: str
    signature: str
    signer_known: bool
    gates_checked: int
    not_recomputed: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def issue(request: Request, facts: CertificateFacts, directory: Path, signing_key: Path | None) -> Path:
    """Write the certificate of a fulfilled request to `directory`/<request id>.json, signed when there is a PEM key.

    The same facts give the same bytes. Raises RequestError for a request that is not fulfilled, and for one that has
    another certificate already; ConfigError for a key that is no Ed25519 key.
    """
    if request.state != "fulfilled":
        raise RequestError(f"Request {request.id} is {request.state}: only a fulfilled one gets a certificate.")
    key = load_signing_key(signing_key) if signing_key else None
    told, figures = request.as_dict(), asdict(facts)
    others = [f"The {what} is by {by}, which is no part of genrec." for what, by in figures.pop("third_party").items()]
    body = {
        "schema_version": SCHEMA_VERSION,
        "request": {name: told[name] for name in ("id", "digest", "kind", "label", "batch_id")},
        "times": {name: told[f"{name}_at"] for name in ("received", "verified", "suppressed", "unlearned")},
        "method": request.method,
        **figures,
        "limits_of_the_claim": [_CLAIMS.get(request.method, _APPROXIMATE), *_ALWAYS, *others],
        "public_key": key.public_key().public_bytes_raw().hex() if key else None,
    }
    try:
        digest = _hash(body)
    except ValueError as error:
        raise RequestError(f"A figure of request {request.id} is NaN or infinite; use None instead.") from error
    signed = body | {"hash": digest, "signature": key.sign(digest.encode()).hex() if key else None}
    content = (canonical_json(signed) + "\n").encode()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{request.id}.json"
    if path.exists():
        if path.read_bytes() != content:
            raise RequestError(f"{path} holds another certificate of request {request.id}. Move it away to issue anew.")
        return path
    write_atomically(path, lambda file: file.write(content))
    return path


def verify(path: Path, public_key: Path | None = None) -> Verification:
    """Check a certificate's hash, signature, simple gates and that no blocking one stood in the way; with a PEM
    `public_key`, that this key signed it.

    Raises RequestError for a file that is no certificate or one of a newer version, ConfigError for a key that is no
    Ed25519 key.
    """
    with _reading(path):
        content, body = _read(path)
        request_id, embedded = body["request"]["id"], body["public_key"]
        digest, signature = content["hash"], content["signature"]
        unchanged = digest == _hash(body)
        checks = [(gate["name"], _follows(gate)) for gate in body["gates"]]
        undecided = _undecided(body)
    problems = []
    if not unchanged:
        problems.append("The content does not match its hash: it was changed after it was issued.")
    trusted = _public_key(public_key) if public_key else None
    status = "absent"
    if signature is not None:
        key = trusted.public_bytes_raw().hex() if trusted else embedded
        status = "valid" if _signed(key, signature, digest) else "invalid"
    if status == "invalid":
        problems.append("The signature is not by the given key." if trusted else "The signature is broken.")
    if status == "absent" and trusted:
        problems.append("It is not signed, so the given key says nothing about it.")
    elif status == "absent" and embedded is not None:
        problems.append("It names a key and has no signature: that was taken out.")
    problems += [f"Gate {name!r}: its figures do not give its verdict." for name, holds in checks if holds is False]
    problems += [f"Gate {name!r} is {verdict}, which this method does not pass with." for name, verdict in undecided]
    return Verification(
        request_id=request_id,
        signature=status,
        signer_known=bool(trusted) and status == "valid",
        gates_checked=sum(holds is not None for _, holds in checks),
        not_recomputed=tuple(name for name, holds in checks if holds is None),
        problems=tuple(problems),
    )


def recomputed_hash(path: Path) -> str:
    """The hash of what a certificate says, whatever it gives as its own. Raises RequestError as `verify`."""
    with _reading(path):
        return _hash(_read(path)[1])


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path} is no certificate: {type(error).__name__}: {error}. Get the file anew.") from error


def _read(path: Path) -> tuple[dict, dict]:
    """All of a certificate, and what its hash is of."""
    content = json.loads(path.read_bytes())
    version = content["schema_version"]
    if version not in range(1, SCHEMA_VERSION + 1):
        raise RequestError(
            f"{path} is a certificate of version {version!r}; this genrec knows versions 1 to {SCHEMA_VERSION}. "
            "Install the version that wrote it."
        )
    return content, {name: value for name, value in content.items() if name not in ("hash", "signature")}


def _undecided(body: Mapping) -> list[tuple[str, str]]:
    """Name and verdict of the blocking gates that stand in the way of the method; version 1 does not tell them."""
    if body["schema_version"] == 1:
        return []
    enough = ("PASS", "INCONCLUSIVE") if body["exact"] else ("PASS",)
    blocking = [gate for gate in body["gates"] if gate["blocking"]]
    return [(gate["name"], gate["verdict"]) for gate in blocking if gate["verdict"] not in enough]


def _follows(gate: Mapping) -> bool | None:
    """Whether the verdict follows from the figures; None where the rule needs more than them."""
    low, high, limit = gate["low"], gate["high"], gate["limit"]
    if low is None or high is None or limit is None:
        return None
    match gate["rule"]:
        case "high <= limit":
            passed, failed = high <= limit, low > limit
        case "low >= limit":
            passed, failed = low >= limit, high < limit
        case "inside limit":
            passed, failed = limit[0] <= low and high <= limit[1], high < limit[0] or low > limit[1]
        case _:
            return None
    # few examples may turn a pass or a fail into INCONCLUSIVE, never the other way round
    return gate["verdict"] == "INCONCLUSIVE" or gate["verdict"] == ("PASS" if passed else "FAIL" if failed else None)


def _hash(body: Mapping) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def _signed(key: str, signature: str, digest: str) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), digest.encode())
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 key in a PEM file for its owner only. Raises ConfigError for anything else."""
    try:
        key = load_pem_private_key(read_secret(path), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"Signing key {path} cannot be read: {error}. {_MAKE_KEY}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"Signing key {path} is no Ed25519 key. {_MAKE_KEY}")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"Public key {path} cannot be read: {error}. {_MAKE_PUBLIC}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"Public key {path} is no Ed25519 key. {_MAKE_PUBLIC}")
    return key


_MAKE_KEY = "Make one with `openssl genpkey -algorithm ed25519 -out FILE` and set GENREC_SIGNING_KEY."
_MAKE_PUBLIC = "Make it with `openssl pkey -in SIGNING_KEY -pubout -out FILE`."
