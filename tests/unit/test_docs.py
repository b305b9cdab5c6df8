"""The documentation holds: generated pages are current, links lead somewhere, commands and snippets are real."""

import logging
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

from genrec.config import Params
from genrec.data.tables import read_tables
from tests.snippets import PAGES, ROOT, ROOT_COMMAND, Block, blocks, commands, parse

BLOCKS = [pytest.param(page, block, id=f"{page.relative_to(ROOT)}:{i}") for page in PAGES
          for i, block in enumerate(blocks(page))]  # fmt: skip
PROGRAMS = {
    ".", "cd", "chmod", "cp", "createdb", "curl", "docker", "dvc", "echo", "export", "genrec", "make", "mlflow",
    "openssl", "pip", "prefect", "python",
}  # fmt: skip


def of(*languages: str):
    return [param for param in BLOCKS if param.values[1].language in languages]


@pytest.mark.parametrize(("page", "block"), of("bash"))
def test_every_command_is_one_that_exists(page: Path, block: Block):
    """Those that tests/e2e/test_howto.py does not run are at least known."""
    for words in commands(block.text):
        assert words[0] in PROGRAMS, words
        if words[0] == "docker" and "exec" in words:
            words = words[words.index("cpu-worker") + 1 :]
        if words[0] == "genrec":
            parse(words)


def test_a_wrong_command_or_option_would_be_found():
    parse(["genrec", "data", "fetch", "tables", "--from", "x"])
    for wrong, said in {
        "data fetsh x": "no command", "data": "is a group", "data fetch tables --form x": "No such option",
        "power --power 2": "less than or equal to", "models rollback 1 2": "unexpected extra argument",
    }.items():  # fmt: skip
        with pytest.raises(Exception, match=said):
            parse(["genrec", *wrong.split()])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_text_exist(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for named in re.findall(r"`genrec ([a-z][^`]*)`", text):
        command = ROOT_COMMAND
        for word in named.split():
            if not hasattr(command, "commands") or not re.fullmatch("[a-z]+", word):
                break
            assert word in command.commands, f"{page.name}: genrec {named}"
            command = command.commands[word]


@pytest.mark.parametrize(("page", "block"), of("yaml"))
def test_yaml_is_yaml_and_parameters_are_known(page, block):
    tree = yaml.safe_load(block.text)
    if block.title == "params.yaml":
        Params.model_validate(tree)


@pytest.mark.parametrize(("page", "block"), of("toml"))
def test_toml_is_toml(page, block):
    assert tomllib.loads(block.text)


@pytest.mark.parametrize(("page", "block"), [p for p in of("python") if p.values[1].title != "read_a_version.py"])
def test_python_runs(page, block):
    """read_a_version.py needs a champion: tests/integration/test_bring_a_model.py runs it."""
    exec(compile(block.text, str(page), "exec"), {})


def test_the_tables_of_the_tutorial_are_tables(tmp_path):
    for block in blocks(ROOT / "docs" / "tutorial.md"):
        if block.language == "csv":
            (tmp_path / Path(block.title).name).write_text(block.text)
    tables = read_tables(tmp_path)
    assert set(tables.interactions["item_id"].to_pylist()) <= set(tables.items["item_id"].to_pylist())


def test_the_method_in_the_docs_is_the_one_in_the_code():
    (block,) = [b for b in blocks(ROOT / "docs" / "how-to" / "add-a-method.md") if b.language == "python"]
    code = (ROOT / "genrec" / "unlearning" / "finetune.py").read_text()
    assert code.endswith(block.text)


def test_every_language_of_a_block_is_one_that_is_checked():
    known = {"bash", "text", "python", "yaml", "csv", "toml"}
    assert {block.language for page in PAGES for block in blocks(page)} <= known


def test_the_reference_is_what_the_code_says():
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    old = [name for name, text in generate["pages"]().items() if (generate["FOLDER"] / name).read_text() != text]
    assert not old, "out of date: run `python docs/generate.py`"


def test_the_site_builds_without_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "mkdocs"):
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))
    page = (tmp_path / "index.html").read_text()
    assert 'href="tutorial/"' in page
    assert "fonts.googleapis.com" not in page


@pytest.mark.parametrize("page", PAGES[-2:], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_outside_of_the_site_lead_to_files(page):
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in linked if not (page.parent / target).exists()] == []
