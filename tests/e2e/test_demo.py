"""The README's two commands in a clean clone: `make demo` twice, with a smaller shop and model; `make test` is printed.

What `make install` would install is taken from the environment of the tests.
"""

import json
from pathlib import Path

import pytest

from genrec.config import Params
from genrec.requests.certificates import verify
from genrec.workspace import params_yaml
from tests.clone import clone, git
from tests.commands import program
from tests.conftest import TINY, genrec
from tests.snippets import ROOT, runnable
from tests.terminal import Terminal, filled

SMALL = {**TINY, "train": {**TINY["train"], "epochs": 8}, "backbone": {"visits": 700, "learning_rate": 0.005}}


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[Path, list[str], list[dict]]:
    """The clone after both demos, what each printed, and the summary each left."""
    home = tmp_path_factory.mktemp("demo") / "genrec"
    clone(home)
    (home / "params.yaml").write_text(params_yaml(Params.model_validate(SMALL)))
    (bin := home / ".venv" / "bin").mkdir(parents=True)
    program(bin)
    (home / ".venv" / ".installed").touch()
    terminal, printed, summaries = Terminal(home), [], []
    two_commands = filled(runnable(ROOT / "README.md")[0], {"make test": "make -n test"})
    for _ in range(2):
        printed.append(terminal.run(two_commands))
        summaries.append(json.loads((home / "reports" / "latest" / "summary.json").read_text()))
    return home, printed, summaries


def test_the_first_builds_everything_and_the_second_says_what_it_reuses(shown):
    _, (first, second), (before, _) = shown
    assert "simulating a shop into data/" in first
    assert "building the base model with `dvc repro`" in first
    assert f"reusing data/ at version {before['data_version']}" in second
    assert f"reusing the champion, version {before['champion_after']} in mlruns/" in second
    assert "building the base model" not in second
    assert all(text.splitlines()[-1].endswith("-m pytest") for text in (first, second))


def test_each_ends_with_a_new_champion_and_four_requests_fulfilled(shown):
    home, printed, summaries = shown
    for text, summary in zip(printed, summaries, strict=True):
        old, new = summary["champion_before"], summary["champion_after"]
        assert summary["outcome"] == "promoted"
        assert int(new) > int(old)
        assert f"Outcome: promoted. Champion {old} -> {new}. Report: {home}/reports/latest/index.html" in text
        assert sorted(request["kind"] for request in summary["requests"]) == ["concept", "user", "user", "user"]
        assert {request["state"] for request in summary["requests"]} == {"fulfilled"}
        assert {"users", "final"} < {one["group"] for one in summary["attempts"] if one["verdict"] == "PASS"}
    first, second = summaries
    assert second["champion_before"] == first["champion_after"]
    assert second["data_version_before"] == first["data_version"]
    concepts = [r["label"] for summary in summaries for r in summary["requests"] if r["kind"] == "concept"]
    assert concepts[0] == "Gambling"
    assert concepts[1] != "Gambling"
    versions = json.loads(genrec(home, "models", "list", "--json").stdout)
    assert [v["version"] for v in versions if "champion" in v["aliases"]] == [second["champion_after"]]


def test_every_request_of_both_has_a_certificate_that_holds(shown):
    home, _, summaries = shown
    requests = {request["id"] for summary in summaries for request in summary["requests"]}
    assert len(requests) == 8
    certificates = sorted((home / "reports" / "certificates").iterdir())
    assert {path.stem for path in certificates} == requests
    assert all(verify(path).ok for path in certificates)


def test_git_sees_the_pin_and_for_these_parameters_the_lock_of_the_stages(shown):
    home = shown[0]
    changed = git("status", "--porcelain", folder=home).decode().splitlines()
    assert " M data.dvc" in changed
    assert {line[3:] for line in changed} - set(_changed_by_the_working_tree()) == {"data.dvc", "dvc.lock"}


def _changed_by_the_working_tree() -> set[str]:
    return {line[3:] for line in git("status", "--porcelain", folder=ROOT).decode().splitlines()} | {"params.yaml"}
