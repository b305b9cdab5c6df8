"""`genrec recommend`: a batch of histories from options and files, in order, and which of them is wrong."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from genrec.cli import app
from genrec.data.sequences import load_dataset
from genrec.data.subjects import Subject
from genrec.errors import INTERRUPTED, BundleError, DataError
from genrec.histories import from_file
from genrec.requests.intake import known_of
from genrec.serving import recommend
from tests.unit.past import Past

NOW = datetime(2031, 5, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def past(tmp_path_factory, shop, bundle, params):
    past = Past(tmp_path_factory.mktemp("asked") / "shop", shop.root, bundle, params)
    past.train(NOW)
    return past


@pytest.fixture
def ask(past, monkeypatch):
    monkeypatch.setenv("GENREC_HOME", str(past.workspace.root))
    monkeypatch.setenv("GENREC_PSEUDONYM_KEY", "key")
    monkeypatch.setenv("GENREC_QUIET", "1")
    return lambda *arguments: CliRunner().invoke(app, ["recommend", *map(str, arguments)])


def test_a_batch_is_answered_in_the_order_it_was_given(past, bundle, ask, tmp_path):
    ids = bundle.table.item_ids
    histories = [list(ids[3:6]), [ids[20], "gone"], list(ids[30:32]), [ids[7]]]
    (file := tmp_path / "histories.txt").write_text(f"{ids[30]}, {ids[31]}\n{json.dumps([ids[7]])}\n")
    done = ask("--history", ",".join(histories[0]), "--history", f"{ids[20]},gone", "--file", file, "--k", 4, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    expected = recommend(bundle, bundle.model(), histories, 4)
    assert [[item["item_id"] for item in row] for row in found] == [[i["item_id"] for i in row] for row in expected]
    table = ask("--file", file, "--k", 2).stdout
    assert [line.split()[1] for line in table.splitlines() if ids[0][0] in line and "│" in line] == ["1", "1", "2", "2"]


def test_of_a_batch_the_error_names_the_history(bundle, ask):
    done = ask("--history", bundle.table.item_ids[0], "--history", "gone,lost")
    assert isinstance(done.exception, BundleError)
    assert str(done.exception).startswith("None of the 2 items of history 2 of 2 is known.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a,b\n,\n", r"histories\.txt, line 2 is empty"),
        (b'["a", 3]\n', r"line 1 has an id that is no string. Write"),
        (b'a\n["a"\n', r"line 2 is no JSON list"),
        (b"caf\xe9\n", "is not UTF-8"),
    ],
)
def test_a_line_that_is_no_history_is_named(tmp_path, text, message):
    (file := tmp_path / "histories.txt").write_bytes(text)
    with pytest.raises(DataError, match=message):
        from_file(file)


def test_when_every_item_is_denied_it_says_so(past, bundle, ask):
    ids, data = bundle.table.item_ids, load_dataset(past.workspace.prepared)
    request = past.ledger.submit(Subject("item", item_id=ids[0]), known_of(data), now=NOW)
    past.ledger.verify(request.id, now=NOW, verifier="desk", deny_items=ids)
    done = ask("--history", ids[0])
    assert isinstance(done.exception, BundleError)
    assert str(done.exception) == "Every item of the catalogue is denied. Shorten the deny list."


def test_ctrl_c_ends_a_command_with_its_exit_code_and_no_trace(tmp_path):
    """The command waits for the rest of its file when the signal comes."""
    os.mkfifo(pipe := tmp_path / "histories.txt")
    started = subprocess.Popen(
        [sys.executable, "-m", "genrec.cli", "recommend", "--file", str(pipe)], text=True, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in background
    )  # fmt: skip
    with pipe.open("w"):  # the command has opened it
        started.send_signal(signal.SIGINT)
        assert (started.communicate(timeout=60)[1], started.returncode) == ("", INTERRUPTED)
