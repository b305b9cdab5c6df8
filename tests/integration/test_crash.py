"""The crash matrix in short: one night for one person, killed eight times on its way. `make crash` runs all of it."""

import json

import pytest

from tests.crash import Case, moments, run, serving, shop

MOMENTS = (
    "before rename of data",
    "before dvc repro prepare validate",
    "before MLflow commit: registered_model_aliases challenger",
    "before ledger commit: promoted",
    "before ledger commit: certified",
    "before ledger scrub",
)
SEEDS = range(6, 8)
RANDOM_S = 3  # a night goes on for longer than that after the second of these


@pytest.fixture(scope="module")
def killed(trained, tmp_path_factory):
    """The workspace's last run, after kills at each moment, and what it told."""
    folder = tmp_path_factory.mktemp("crash")
    with serving(folder):
        asked, answer = shop(trained, folder / "shop"), folder / "answer.json"
        cases = [Case(name, boundary=(name, 1)) for name in MOMENTS]
        cases[2:2] = moments(SEEDS, RANDOM_S)
        ends = {case.name: run(asked, answer, case) for case in cases}
        assert not run(asked, answer, Case("the last"))
    return ends, json.loads(answer.read_text())


def test_a_night_killed_eight_times_comes_to_the_end_of_one_that_was_not(killed):
    """Every run but the last died; each began with a champion that loads and a whole chain; no rule is broken."""
    ends, told = killed
    assert [name for name, died in ends.items() if not died] == []
    assert told["broken"] == []
