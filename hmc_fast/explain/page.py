"""One self-contained HTML page for the explanations of many films."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hmc_fast.explain.film import FilmExplanation
from hmc_fast.explain.methods import SCALE, TITLES
from hmc_fast.reporting import RESEARCH_NOTICE, percent, templates

NOTICE = (
    f"{RESEARCH_NOTICE} A map shows what moved the model, which need not be where the disease is."
)


@dataclass(frozen=True)
class PageEntry:
    """One film on the page: its explanation and its picture as base64 PNG."""

    explanation: FilmExplanation
    picture: str


def render_page(title: str, facts: Sequence[str], entries: Sequence[PageEntry]) -> str:
    """The page's HTML, with all pictures inside; ``facts`` are lines below the title."""
    template = templates("hmc_fast.explain").get_template("explanations.html.j2")
    return template.render(
        title=title,
        facts=list(facts),
        films=[_film(entry) for entry in entries],
        notice=NOTICE,
    )


def _film(entry: PageEntry) -> dict[str, Any]:
    values = entry.explanation.to_json()
    rows = [
        (
            TITLES[activation["method"]],
            activation["class"],
            f"{activation['layer']}, {'×'.join(map(str, activation['grid']))}",
            _in_words(activation["pointing_game"], "hit", "miss"),
            "–"
            if activation["energy_in_lesion"] is None
            else percent(activation["energy_in_lesion"], 1),
            activation["note"] or "",
        )
        for activation in values["maps"]
    ]
    shares = values["scale"] and ", ".join(
        f"{name} {percent(share, 1)} "
        f"(by token count {percent(values['scale']['token_shares'][name])})"
        for name, share in values["scale"]["film_shares"].items()
    )
    return {
        "id": values["film"],
        "file": values["file"],
        "predicted": values["predicted"],
        "explained": values["explained"],
        "probabilities": values["probabilities"],
        "findings": [
            f"{finding.severity} {finding.kind}" for finding in entry.explanation.film.findings
        ],
        "annotated": values["annotated"],
        "rows": rows,
        "scale": shares and f"{TITLES[SCALE]}, share of the attention: {shares}",
        "notes": values["notes"],
        "picture": entry.picture,
    }


def _in_words(hit: float | None, yes: str, no: str) -> str:
    if hit is None:
        return "–"
    return yes if hit >= 0.5 else no
