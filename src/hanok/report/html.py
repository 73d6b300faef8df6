"""A report as one HTML file: nothing is loaded from anywhere, and no script runs in it."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hanok.report.content import Report
from hanok.report.figures import Drawing

TEMPLATE = "report.html.j2"


def to_html(report: Report) -> str:
    """Return ``report`` as HTML. All that comes from files is escaped."""
    environment = Environment(
        loader=PackageLoader("hanok.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(report=report, svg=_svg)


def _svg(drawing: Drawing) -> Markup:
    # matplotlib escapes the texts that it draws.
    return Markup(drawing.svg())  # noqa: S704
