"""What is tested on PostgreSQL and in Chromium is tested: in CI a missing program is a failure, elsewhere a skip."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import postgres
from tests.browser import chromium

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("ci", "end"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_program_fails_in_ci_and_skips_elsewhere(ci, end, monkeypatch, tmp_path):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres, "INSTALLED", tmp_path)
    for package, start in (("postgresql", postgres.server), ("chromium", chromium)):
        with pytest.raises(end, match=f"apt-get install {package}"), start():
            pass


def test_the_checks_of_a_change_end_at_once_where_a_program_cannot_be_installed(tmp_path):
    """A PATH without Chromium and without apt-get; nor is make there, which would come next."""
    for name in ("bash", "dirname", "id"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = subprocess.run([ROOT / ".ci" / "run"], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Missing, and could not be installed: ")
    assert line.endswith("chromium")


def test_make_has_the_tests_keep_their_pictures_in_a_folder_that_git_ignores():
    environment = {name: value for name, value in os.environ.items() if name != "GENREC_TEST_ARTEFACTS"}
    show = ["make", "--silent", "--eval", "show: ; @echo $$GENREC_TEST_ARTEFACTS", "show"]
    folder = subprocess.run(show, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(folder) == ROOT / "reports" / "test-artefacts"
    assert "/reports" in (ROOT / ".gitignore").read_text().splitlines()
