"""The validation report as one self-contained HTML page."""

from jinja2 import Environment, PackageLoader

from genrec.validation.run import ValidationReport


def render_page(report: ValidationReport) -> str:
    """HTML of a report; every value is escaped, and nothing is loaded from elsewhere."""
    environment = Environment(loader=PackageLoader("genrec.validation", "."), autoescape=True)
    return environment.get_template("page.html.j2").render(report=report)
