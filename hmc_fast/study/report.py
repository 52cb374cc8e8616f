"""Study reports: Markdown with figures beside it, self-contained HTML, and LaTeX."""

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from hmc_fast.errors import UserError
from hmc_fast.evaluation import METRIC_NAMES
from hmc_fast.evaluation.comparison import FriedmanTest
from hmc_fast.files import make_folder, write_atomically, write_text
from hmc_fast.reporting import (
    PHANTOM_NOTICE,
    RESEARCH_NOTICE,
    markdown_templates,
    metric_title,
    templates,
)
from hmc_fast.study import plots, tables
from hmc_fast.study.compare import Comparison, Group, ModelResult
from hmc_fast.study.conclusion import accuracy_caveat, conclusion
from hmc_fast.study.record import StudyRecord
from hmc_fast.study.tables import Table
from hmc_fast.training import TrainingConfig

LEAK_NOTICE = (
    "This protocol leaks: films or patients of the test side are on the training side as well. Its "
    "figures say nothing about new patients."
)
FIGURES_FOLDER = "figures"
_LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "χ²": r"$\chi^2$",
    "×": r"$\times$",
    "α": r"$\alpha$",
    "²": r"$^2$",
    "–": "--",
    "·": r"$\cdot$",
}


@dataclass(frozen=True)
class Figure:
    """A picture, the name of its file and what it shows."""

    name: str
    caption: str
    png: bytes

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A heading with a table, a figure, or both, and a warning before them."""

    title: str
    table: Table | None = None
    figure: Figure | None = None
    caveat: str | None = None


def write_study_reports(
    comparison: Comparison, folder: Path, metric: str = "auc_roc"
) -> tuple[Path, Path, Path]:
    """Write ``report.md``, ``report.html`` and ``report.tex``; returns their paths.

    ``metric`` is the one that Nemenyi's comparisons and the critical-difference diagram rank by.

    Raises :class:`UserError` for an unknown metric or a folder that cannot be written.
    """
    if metric not in METRIC_NAMES:
        raise UserError(f"unknown metric {metric!r}; choose one of {', '.join(METRIC_NAMES)}")
    groups: list[dict[str, Any]] = [
        {
            "title": group.title,
            "conclusion": conclusion(group),
            "leak": None if group.protocol == "patient" else LEAK_NOTICE,
            "sections": _sections(group, metric, number),
        }
        for number, group in enumerate(comparison.groups)
    ]
    context = {
        "groups": groups,
        "studies": [_facts(study) for study in comparison.studies],
        "selection": _selection(comparison.studies),
        "phantoms": any(study.data["phantoms"] for study in comparison.studies),
        "phantom_notice": PHANTOM_NOTICE,
        "research_notice": RESEARCH_NOTICE,
        "figures_folder": FIGURES_FOLDER,
    }
    make_folder(folder / FIGURES_FOLDER)
    for group_context in groups:
        for section in group_context["sections"]:
            if section.figure is not None:
                _write_figure(folder / FIGURES_FOLDER / section.figure.name, section.figure.png)
    paths = []
    for suffix in ("md", "html", "tex"):
        path = folder / f"report.{suffix}"
        template = _templates(suffix).get_template(f"report.{suffix}.j2")
        write_text(path, template.render(context))
        paths.append(path)
    return paths[0], paths[1], paths[2]


def escape_latex(text: object) -> str:
    """Text for LaTeX, with the symbols of our tables in mathematics."""
    result = str(text)
    if result.isascii() and not any(character in _LATEX_ESCAPES for character in result):
        return result
    result = result.replace("χ²", "\0")
    escaped = "".join(_LATEX_ESCAPES.get(character, character) for character in result)
    return escaped.replace("\0", _LATEX_ESCAPES["χ²"])


def _sections(group: Group, metric: str, number: int) -> list[Section]:
    results = group.results
    labels = [result.label for result in results]

    def figure(name: str, caption: str, png: bytes) -> Figure:
        return Figure(f"{name}-{number}.png", caption, png)

    caveat = accuracy_caveat(group)
    sections = [Section("Metrics over folds", tables.metrics_table(group), caveat=caveat)]
    ensembles = tables.ensemble_table(group)
    if ensembles is not None:
        sections.append(Section("Ensembles", ensembles))
    if group.pairs:
        sections.append(Section("Paired differences", tables.pairs_table(group)))
        sections.append(Section("Friedman's test", tables.friedman_table(group), caveat=caveat))
    test = group.friedman[metric]
    if isinstance(test, FriedmanTest):
        diagram = plots.critical_difference_diagram(labels, test)
        sections.append(
            Section(
                f"Nemenyi's comparisons by {metric_title(metric)}",
                tables.nemenyi_table(labels, test),
                figure(
                    "critical-difference",
                    f"Critical-difference diagram of mean ranks by {metric_title(metric)}",
                    diagram,
                ),
            )
        )
    sections += [
        Section("Calibration", tables.calibration_table(group)),
        Section(
            "ROC curves",
            figure=figure(
                "roc",
                "Pooled ROC curves with pointwise 95 % bands; dotted: chance",
                plots.roc_curves(results),
            ),
        ),
        Section(
            "Confusion matrices",
            figure=figure(
                "confusion",
                "Films by true and predicted class, all repeats together; the colour is the share "
                "of the true class",
                plots.confusion_matrices(results),
            ),
        ),
        Section(
            "Learning curves",
            figure=figure(
                "learning",
                "Loss (left axis) and held-out AUC (right axis): a line a fold, and their mean",
                plots.learning_curves(results),
            ),
        ),
    ]
    localisation = tables.localisation_table(group)
    if localisation is not None:
        curves = plots.deletion_insertion_curves(results)
        caption = "Deletion (solid) and insertion (dashed) curves"
        picture = figure("deletion-insertion", caption, curves)
        sections.append(Section("How good the maps are", localisation, picture))
    return sections


def _selection(studies: Sequence[StudyRecord]) -> str:
    """What was kept of the trainings, for all models of all studies."""
    epochs = {
        bool(TrainingConfig(**study.config).epochs_of(model))
        for study in studies
        for model in study.models
    }
    kept = []
    if True in epochs:
        kept.append("The last epoch counts")
    if False in epochs:
        kept.append("Lesion heads are fitted to the circles of lesions, without an epoch")
    return f"{'. '.join(kept)}; nothing is selected on a held-out fold."


def _facts(study: StudyRecord) -> dict[str, Any]:
    config, env = study.config, study.environment
    missing = study.data.get("missing", 0)
    return {
        "name": study.name,
        "data": f"{study.data['name']}: {study.data['films']} films of "
        f"{study.data['patients']} patients"
        + (f", a subset ({missing} films of Info.txt are missing)" if missing else ""),
        "protocol": study.protocol,
        "settings": ", ".join(f"{key} {value}" for key, value in config.items()),
        "device": env["gpu"] or f"{env['cpu']}, {env['cpu_threads']} threads",
        "versions": f"torch {env['packages']['torch']}, Python {env['python']}",
        "command": env["command"],
    }


def _write_figure(path: Path, png: bytes) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(png))


def _templates(suffix: str) -> Environment:
    """LaTeX has its own delimiters: its braces are many."""
    if suffix == "md":
        return markdown_templates("hmc_fast.study")
    latex = {
        "block_start_string": "<%",
        "block_end_string": "%>",
        "variable_start_string": "<<",
        "variable_end_string": ">>",
    }
    environment = templates("hmc_fast.study", **(latex if suffix == "tex" else {}))
    environment.filters["tex"] = escape_latex
    return environment


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """What a script wants of a report: every number of its tables."""
    return {
        "studies": [
            {"name": study.name, "settings": study.settings, "data": study.data}
            for study in comparison.studies
        ],
        "groups": [_group_json(group) for group in comparison.groups],
    }


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "title": group.title,
        "protocol": group.protocol,
        "models": [_model_json(result) for result in group.results],
        "pairs": [asdict(pair) for pair in group.pairs],
        "friedman": {
            metric: {"none": test} if isinstance(test, str) else asdict(test)
            for metric, test in group.friedman.items()
        },
    }


def _model_json(result: ModelResult) -> dict[str, Any]:
    return {
        "label": result.label,
        "model": result.model,
        "study": result.study,
        "folds": result.folds,
        "mean_std": result.mean_std,
        "pooled_auc": asdict(result.pooled_auc),
        "calibration": asdict(result.calibration),
        "confusion": result.confusion,
        "ensemble_auc": result.ensemble_auc and asdict(result.ensemble_auc),
        "ensemble_gain": result.ensemble_gain and asdict(result.ensemble_gain),
        "localisation": result.localisation,
    }
