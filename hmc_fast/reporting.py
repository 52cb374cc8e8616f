"""What all reports share: notices, number formats, templates, colours and pictures in a page."""

import base64
import io
import re
from collections.abc import Iterable
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from hmc_fast.errors import UserError

PHANTOM_NOTICE = (
    "These films are procedural phantoms: the figures show that the software runs and how fast, "
    "and say nothing about mammograms."
)
RESEARCH_NOTICE = "Research software, not a medical device."
DASH = "–"
"""Stands where there is no figure."""

# Okabe and Ito's colours, which colour-blind readers tell apart; black is for axes.
ORANGE, SKY, GREEN, YELLOW = "#e69f00", "#56b4e9", "#009e73", "#f0e442"
BLUE, VERMILION, PURPLE, GREY = "#0072b2", "#d55e00", "#cc79a7", "#8c8c8c"
FIGURE_WIDTH = 6.5
"""Inches: with text of 9 points still to be read where a phone shows the figure."""
PNG_DPI = 160


def number(value: float | None, form: str) -> str:
    """``value`` by a format such as ``"{:.1f}"``, a dash for None."""
    return DASH if value is None else form.format(value)


def milliseconds(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return DASH
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def percent(share: float, digits: int = 0) -> str:
    """A share of 1 as per cent."""
    return f"{100 * share:.{digits}f} %"


def metric_title(name: str) -> str:
    """A metric's name as tables write it."""
    return {"auc_roc": "AUC-ROC", "f1": "F1"}.get(name, name)


def plus_minus(mean: float | None, std: float | None) -> str:
    """Mean and standard deviation to three decimals."""
    return DASH if mean is None else f"{mean:.3f} ± {std:.3f}"


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """A figure and its interval to three decimals."""
    return DASH if value is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def between_marks(text: str, begin: str, end: str, content: str) -> str:
    """A page's ``text`` with ``content`` between the lines ``begin`` and ``end``.

    Raises :class:`UserError` where it lacks them, has one twice, or has them the other way round.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"a page needs the lines {begin} and {end}, once each, in this order")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def templates(package: str, **delimiters: str) -> Environment:
    """Jinja2 over ``package``'s folder ``templates`` and the one that all pages share.

    HTML is escaped, a missing value is an error. The filter ``figures_whole`` is
    :func:`figures_whole`.

    ``delimiters`` replace Jinja2's own, for formats that are full of braces.
    """
    options: dict[str, Any] = dict(delimiters)
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("hmc_fast")]),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters["figures_whole"] = figures_whole
    return environment


def figures_whole(text: str) -> str:
    """``text`` with figures such as ``0.63 ± 0.04``, ``[0.5, 0.7]`` or ``worst 8`` in one line."""
    return re.sub(r"(?<=[\d±/,]) (?=[\d±/%+-])|(?<=[a-z]) (?=[\d.]+$)", "\u00a0", text)


def markdown_templates(package: str) -> Environment:
    """:func:`templates` for Markdown, in which HTML would be obeyed: values bring none.

    The filter ``cells`` makes a row of a table.
    """
    environment = templates(package)
    environment.finalize = _without_tags
    environment.filters["cells"] = _cells
    return environment


def _without_tags(value: Any) -> Any:
    return value.replace("<", "&lt;") if isinstance(value, str) else value


def _cells(values: Iterable[object]) -> str:
    return " | ".join(str(value).replace("|", "\\|").replace("\n", " ") for value in values)


def new_figure(height: float, width: float = FIGURE_WIDTH) -> Figure:
    """A figure of a report, in inches; panels stand clear of each other's titles and labels."""
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", h_pad=0.08, hspace=0.06)
    return figure


def png(figure: Figure) -> bytes:
    """``figure`` as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DPI)
    return buffer.getvalue()


def png_base64(figure: Figure) -> str:
    """``figure`` as a base64 PNG, for a page that holds its own pictures."""
    return base64.b64encode(png(figure)).decode("ascii")
