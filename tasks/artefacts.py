"""A night's tables as Prefect artifacts: their keys stay the same, so that each has its history over the nights."""

import re

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from genrec.discreet import discreet
from genrec.report.page import headline
from genrec.report.summary import Summary
from tasks.options import SAFE

REQUEST = ("id", "kind", "label", "state", "method", "received_at", "unlearned_at", "due_at")
ATTEMPT = ("group", "method", "verdict", "wall_s", "reason")
GATE = ("name", "verdict", "value", "low", "high", "limit", "n", "blocking")


@task(**SAFE)
@discreet
def publish(summary: dict) -> None:
    """Requests, attempts, gates and the verdict of a night: `night-requests`, `-attempts`, `-gates`, `-report`."""
    batch, attempts = summary["batch_id"], summary["attempts"]
    gates = [
        {"group": attempt["group"], "method": attempt["method"], **_columns(gate, GATE)}
        for attempt in attempts
        for gate in attempt["gates"]
    ]
    for name, rows in (
        ("requests", [_columns(request, REQUEST) for request in summary["requests"]]),
        ("attempts", [_columns(attempt, ATTEMPT) for attempt in attempts]),
        ("gates", gates),
    ):
        create_table_artifact(table=rows, key=f"night-{name}", description=f"Night {batch}: {summary['outcome']}")
    create_markdown_artifact(markdown=_report(summary), key="night-report", description=f"Night {batch}")


def _columns(row: dict, names: tuple[str, ...]) -> dict:
    return {name: row[name] for name in names}


def _report(summary: dict) -> str:
    """The verdict in a sentence, and where the page lies: in the workspace, and with the MLflow run of the version."""
    page = f"reports/nights/{summary['batch_id']}/index.html"
    version = summary["lineage"]["version"]
    kept = f" It is kept with version {version} in MLflow, too." if version else ""
    said = f"**{_plain(headline(Summary.model_validate(summary)))}** {_plain(summary['reason'])}"
    return f"{said}\n\nThe page: `{page}`.{kept}\n"


def _plain(text: str) -> str:
    """`text`, which may quote a concept or a value of the data, in one line without mark-up."""
    text = re.sub(r"[\\`*_\[\]()#|~!]", r"\\\g<0>", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
