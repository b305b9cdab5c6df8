"""What the README says a night prints is what that of tests/demo_night.json printed, but for spaces at line ends."""

import json

import pytest

from genrec.terminal import attempt_rows, request_rows, show
from tests.snippets import ROOT, blocks

NIGHT = json.loads((ROOT / "tests" / "demo_night.json").read_text())


@pytest.fixture
def printed() -> str:
    """The block of the README that shows it."""
    (block,) = [b for b in blocks(ROOT / "README.md") if b.language == "text" and "Outcome: " in b.text]
    return block.text


def test_the_tables_of_the_readme_are_those_that_a_night_prints(printed, capsys):
    show(None, False, attempt_rows(NIGHT), "attempts")
    show(None, False, request_rows(NIGHT), "requests")
    tables = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert len(tables) == 10 + len(NIGHT["attempts"]) + len(NIGHT["requests"])
    assert printed.splitlines()[: len(tables)] == tables


def test_the_outcome_of_the_readme_is_that_of_the_night(printed):
    said = f"Outcome: {NIGHT['outcome']}. Champion {NIGHT['champion_before']} -> {NIGHT['champion_after']}. Report: "
    assert printed.splitlines()[-1].startswith(said)


def test_the_text_beside_it_is_about_the_same_night():
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## What a night prints") : readme.index("## Measured")]
    before, after = NIGHT["forgetting"]["before"], NIGHT["forgetting"]["after"]
    (concept,) = [name for name in after if name.startswith("sh@10")]
    assert f"{100 * before[concept]['value']:.0f} % of the lists" in section
    assert f"in {round(after[concept]['value'] * after[concept]['n'])} of {after[concept]['n']}" in section
    assert f"(upper bound .{round(10000 * after[concept]['high']):04d})" in section
