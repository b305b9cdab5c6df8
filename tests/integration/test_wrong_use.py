"""Wrong use: each mistake of `tests.mistakes` ends in one line with the remedy and its exit code, and changes nothing.

The other two mistakes of the kind, a certificate that was changed and a rollback past what was forgotten, need a night:
tests/e2e/test_newcomer.py makes them.
"""

import json
import shutil

import pytest

from genrec.config import Settings
from genrec.errors import EXIT_CODES
from genrec.registry import open_registry
from tests.conftest import genrec
from tests.mistakes import MISTAKES, Place
from tests.servers import prefect_server


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A workspace without data; only to be copied."""
    home = tmp_path_factory.mktemp("empty") / "shop"
    genrec(home.parent, "init", str(home))
    return home


@pytest.fixture(scope="module")
def prefect(tmp_path_factory):
    """A Prefect server, so that no command starts one of its own."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as (url, _):
        yield url


@pytest.fixture
def place(trained, empty, prefect, tmp_path):
    return Place(trained, shutil.copytree(empty, tmp_path / "empty", symlinks=True), tmp_path, prefect)


@pytest.fixture(scope="module")
def stands(trained):
    """What the requests and the champion of the trained workspace are, asked anew at each call."""

    def look():
        versions = json.loads(genrec(trained, "models", "list", "--json").stdout)
        champion = [version["version"] for version in versions if "champion" in version["aliases"]]
        return json.loads(genrec(trained, "requests", "list", "--json").stdout), champion

    return look


@pytest.fixture(scope="module")
def before(stands):
    return stands()


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_ends_in_its_exit_code_and_one_line_with_the_remedy(what, before, place):
    mistake = MISTAKES[what]
    made = mistake.make(place)
    done = genrec(made.home, *made.arguments, check=False, **made.environment)
    assert done.returncode == mistake.code, done.stdout + done.stderr
    assert done.returncode in EXIT_CODES
    assert "Traceback" not in done.stderr
    assert "fault of genrec" not in done.stderr
    said = " ".join(done.stderr.split())
    assert [words for words in mistake.says if words not in said] == [], done.stderr
    last = [line for line in done.stderr.splitlines() if not line.startswith("Licence: ")]
    assert len(last) == 1, done.stderr
    assert "secret" not in done.stderr
    assert not (place.empty / "data").exists()


def test_no_mistake_stored_or_moved_anything(stands, before):
    assert len(MISTAKES) > 40
    assert stands() == before


def test_good_tables_are_accepted(place):
    genrec(place.empty, "data", "check", str(place.tables()))


def test_a_byte_order_mark_is_no_mistake(place):
    folder = place.changed("interactions", lambda frame: None, encoding="utf-8-sig")
    genrec(place.empty, "data", "fetch", "tables", "--from", str(folder))


def test_a_stack_trace_only_with_debug(place):
    done = genrec(place.empty, "--debug", "data", "fetch", "ml-10k", check=False)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "DataError: Unknown source 'ml-10k'" in done.stderr


def test_corrupt_bundle_is_not_served(trained):
    registry = open_registry(Settings(home=trained).workspace)
    part = registry.bundle_path(registry.champion().number) / "deny.json"
    good = part.read_bytes()
    part.write_bytes(b'["x"]\n')
    try:
        done = genrec(trained, "recommend", "--history", "x", check=False)
    finally:
        part.write_bytes(good)
    assert done.returncode == 1
    assert "deny.json is changed" in done.stderr
    genrec(trained, "evaluate")
