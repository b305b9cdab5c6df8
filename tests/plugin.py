"""A package of somebody else's: what `pip install` leaves of it, made from the how-to."""

import sys
import tomllib
from pathlib import Path

from tests.snippets import ROOT, blocks

PAGE = ROOT / "docs" / "how-to" / "extend.md"


def install(site: Path, project: dict, modules: dict[str, str]) -> Path:
    """Make `site` hold the modules and the metadata of `project`, as in pyproject.toml."""
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    told = {"Metadata-Version": "2.1", "Name": project["name"], "Version": project["version"]}
    (metadata / "METADATA").write_text("".join(f"{name}: {value}\n" for name, value in told.items()))
    groups = [
        f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in named.items())
        for group, named in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(groups) + "\n")
    for name, text in modules.items():
        (site / name).write_text(text)
    return site


def install_example(site: Path) -> Path:
    """The package of docs/how-to/extend.md."""
    titled = {block.title: block.text for block in blocks(PAGE)}
    project = tomllib.loads(titled["pyproject.toml"])["project"]
    return install(site, project, {"acme_genrec.py": titled["acme_genrec.py"]})


def path_with(site: Path) -> str:
    """PYTHONPATH of a process in which the package of `site` is installed."""
    return ":".join([str(site), *(entry for entry in sys.path if entry)])
