"""How the command line behaves: on a terminal, without one, when it is to be quiet, and for a shell that completes."""

import json
import os
import re
import runpy
import subprocess
import sys

import pytest
import yaml

from genrec.errors import EXIT_CODES, GenrecError, NightError, OutageError
from tests import commands
from tests.conftest import copied, genrec
from tests.snippets import ROOT, ROOT_COMMAND, parse
from tests.snippets import commands as words_of

COLOUR = "\x1b[1;31m"
ANSI = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
BAR = re.compile(r"ranking ━+ 2/2 +\d:\d\d:\d\d")


def shown(home, *arguments: str, **environment: str) -> tuple[int, str]:
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    own = {**os.environ, "PATH": path, "GENREC_HOME": str(home), **environment}
    return commands.on_terminal(list(arguments), home, own)


@pytest.fixture(scope="module")
def home(trained, tmp_path_factory):
    """A trained workspace in which one parameter of the stage `evaluate` is new; evaluating takes two batches."""
    copied(trained, home := tmp_path_factory.mktemp("manners") / "shop")
    params = yaml.safe_load((home / "params.yaml").read_text())
    params["gates"]["bootstrap"] = 400
    (home / "params.yaml").write_text(yaml.safe_dump(params))
    return home


@pytest.fixture(scope="module")
def retrained(home):
    """What a terminal showed of `genrec train`, of which only the stage `evaluate` was out of date."""
    return shown(home, "train")


def test_a_stage_that_dvc_runs_shows_its_bar_and_the_time_that_remains(retrained):
    code, said = retrained
    assert code == 0, said
    assert "Running stage 'evaluate'" in said
    assert BAR.search(ANSI.sub("", said)), said
    assert "verdict: PASS" in said


def test_the_result_alone_with_quiet_and_with_json(home, retrained):
    """The same evaluation on a terminal with a bar, and twice without."""
    assert BAR.search(ANSI.sub("", shown(home, "evaluate")[1]))
    code, said = shown(home, "evaluate", "--json")
    assert code == 0
    assert "ndcg@10" in json.loads(said)["utility"]
    code, said = shown(home, "--quiet", "train")
    assert code == 0, said
    assert [line.partition(":")[0] for line in said.splitlines()][:3] == ["version", "verdict", "recall@5"]
    assert all(": " in line for line in said.splitlines())


def test_no_bar_and_no_colour_without_a_terminal(home, retrained):
    """The same loop, once on a terminal and once on pipes."""
    _, said = shown(home, "bench", "serve", "--bundle", "champion", "--repeats", "2")
    assert "\x1b[" in said
    piped = genrec(home, "bench", "serve", "--bundle", "champion", "--repeats", "2")
    assert "\x1b" not in piped.stdout + piped.stderr
    assert piped.stderr == ""


def test_an_error_is_coloured_on_a_terminal_unless_it_is_not_to_be(home):
    line = "Unknown source 'ml-10k'. Known sources near it: ml-100k. See `genrec data --help`."
    assert shown(home, "data", "fetch", "ml-10k") == (1, f"{COLOUR}DataError\x1b[0m: {line}\r\n")
    code, plain = shown(home, "data", "fetch", "ml-10k", NO_COLOR="1")
    assert code == 1
    assert "31m" not in plain
    assert genrec(home, "data", "fetch", "ml-10k", check=False).stderr == f"DataError: {line}\n"


def test_what_is_sound_is_green_on_a_terminal(home):
    _, said = shown(home, "doctor")
    assert "\x1b[32mok" in said


@pytest.fixture(scope="module")
def asked(home):
    return json.loads(genrec(home, "forget", "concept", "Gambling", "--json").stdout)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("requests show ", "{id}"),
        ("lineage request r-", "{id}"),
        ("forget concept Gam", "Gambling"),
        ("data fetch ml-l", "ml-latest-small"),
        ("models roll", "rollback"),
        ("night --j", "--json"),
    ],
)
def test_the_shell_completes_commands_requests_concepts_and_sources(home, asked, typed, offered):
    count = len(typed.split()) + typed.endswith(" ")
    completing = {"_GENREC_COMPLETE": "complete_bash", "COMP_WORDS": f"genrec {typed}", "COMP_CWORD": str(count)}
    assert offered.format(**asked) in genrec(home, **completing).stdout.split()


def test_completion_makes_nothing_in_a_folder_that_is_no_workspace(tmp_path):
    for typed in ("requests show ", "forget concept "):
        completing = {"_GENREC_COMPLETE": "complete_bash", "COMP_WORDS": f"genrec {typed}", "COMP_CWORD": "3"}
        assert genrec(tmp_path, **completing).stdout.strip() == ""
    assert list(tmp_path.iterdir()) == []


def test_completion_can_be_installed(tmp_path):
    done = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "genrec"), "--install-completion", "bash"], text=True,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}, capture_output=True, check=True,
    )  # fmt: skip
    assert "completion installed" in done.stdout
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "_GENREC_COMPLETE=complete_bash" in script.read_text()


LEAVES = runpy.run_path(str(ROOT / "docs" / "generate.py"))["leaves"](ROOT_COMMAND, ("genrec",))
COMMANDS = {" ".join(path): command for path, command in LEAVES if path[1] != "stage"}


@pytest.mark.parametrize("path", COMMANDS)
def test_the_help_of_a_command_ends_with_an_example_that_the_parser_accepts(path):
    start, _, example = (COMMANDS[path].epilog or "").partition("Example: ")
    assert (start, example[: len(path)]) == ("", path)
    ((first, *rest),) = words_of(example)
    parse([first, *rest])


def test_help_takes_less_than_a_second():
    """CPU time of the fastest of three, since the machine may be busy."""
    times = []
    for _ in range(3):
        began = os.times()
        subprocess.run([sys.executable, "-m", "genrec.cli", "--help"], check=True, capture_output=True, cwd=ROOT)
        ended = os.times()
        times.append(ended.children_user + ended.children_system - began.children_user - began.children_system)
    assert min(times) < 1


def test_every_error_has_a_documented_exit_code():
    found, classes = {}, [GenrecError]
    while classes:
        one = classes.pop()
        found[one.__name__] = one.exit_code
        classes += one.__subclasses__()
    assert set(found.values()) == {1, 3, 4} <= set(EXIT_CODES)
    assert {name for name, code in found.items() if code > 1} == {NightError.__name__, OutageError.__name__}
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert [code for code, says in EXIT_CODES.items() if f"| `{code}` | {says} |" not in page] == []
