"""Write the study's tables in README and docs from the records under bench/results/study.

readme_study.py PAGE writes them between their HTML comments; --check only tells whether they
are up to date.
"""

import argparse
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

from hmc_fast.data.folds import PROTOCOL_TITLES
from hmc_fast.errors import UserError
from hmc_fast.evaluation import Interval
from hmc_fast.files import write_text
from hmc_fast.models import model_entry
from hmc_fast.study import StudyRecord, compare, lesion_table, read_lesion_record, read_study
from hmc_fast.study.lesion_figures import UNCHANGED, changes_table
from hmc_fast.study.tables import Table, detectable_gap, metrics_table

RESULTS = Path(__file__).parents[1] / "bench" / "results" / "study"


def markdown(table: Table) -> str:
    """The table without its note."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def facts(record: StudyRecord, protocol: str) -> str:
    """What a study was trained on, and with what."""
    config, data, environment = record.config, record.data, record.environment
    return (
        f"{protocol}; {data['films']} films of {data['patients']} patients, task "
        f"{config['task']}, {config['size']}², {config['epochs']} epochs, {_start(record)}, "
        f"{environment['gpu'] or environment['cpu']}, torch {environment['packages']['torch']}."
    )


def _start(record: StudyRecord) -> str:
    """The weights before training, and which models have none of them."""
    weights = record.config["weights"]
    if weights is None:
        return "random weights"
    others = [
        m
        for m in record.models
        if "=" in weights and f"{model_entry(m).config.trunk}=" not in weights
    ]
    return f"weights `{weights}`" + (f" ({', '.join(others)} start at random)" if others else "")


def study_block() -> str:
    """Metrics over folds of the seven models, what they were trained on, and what can be told."""
    record = read_study(RESULTS / "mias-seven-models.jsonl")
    (group,) = compare([record]).groups
    test = group.friedman["auc_roc"]
    gap = test if isinstance(test, str) else detectable_gap(test)
    return f"{facts(record, group.title)}\n\n{markdown(metrics_table(group))}\n\n{gap}"


def lesions_block() -> str:
    """What the lesion head tells of held-out films, and what it was fitted to."""
    record = read_lesion_record(RESULTS / "mias-lesions.json")
    table, machine = lesion_table(record), record.seeds[0].environment
    made = f"{machine['gpu'] or machine['cpu']}, torch {machine['packages']['torch']}."
    return f"{table.note} {made}\n\n{markdown(table)}"


def lesion_changes_block() -> str:
    """What each part of the lesion study's recipe is worth."""
    record = read_lesion_record(RESULTS / "mias-lesions.json")
    others = [read_lesion_record(p) for p in sorted(RESULTS.glob("mias-lesions-*.json"))]
    return markdown(changes_table(record, others))


def lesion_attention_block() -> str:
    """What attention between the features and the fitted head is worth, one seed."""
    record = read_lesion_record(RESULTS / "mias-lesions_attention.json")
    table = changes_table(record)
    rows = [row for row in table.rows if row[0] == UNCHANGED or "attention" in row[0]]
    return markdown(replace(table, rows=rows))


def leakage_block() -> str:
    """The probe and the model under each protocol."""
    rows = json.loads((RESULTS / "mias-leakage.json").read_text(encoding="utf-8"))
    cells = [
        [
            row["what"],
            PROTOCOL_TITLES[row["protocol"]],
            str(row["copies"]),
            *("–" if row[key] is None else f"{row[key]:.3f}" for key in ("accuracy", "auc")),
        ]
        for row in rows
    ]
    return markdown(Table(["what", "protocol", "rotated copies", "accuracy", "AUC"], cells))


def ablations_block() -> str:
    """The pooled AUC with each option changed alone, and what it gains."""
    first = RESULTS / "ablations" / "base.jsonl"
    others = sorted(path for path in first.parent.glob("*.jsonl") if path != first)
    records = [read_study(path) for path in (first, *others)]
    (group,) = compare(records).groups
    base, *changed = group.results
    differences = {p.second: p.auc_difference for p in group.pairs if p.first == base.label}
    rows = [["as it is", str(base.pooled_auc), "–"]]
    for result in changed:
        label = result.label.removeprefix(f"{result.model}, ")
        rows.append([label, str(result.pooled_auc), gain(differences[result.label])])
    header = ["setting", "pooled AUC [95 % CI]", "gain [95 % CI]"]
    table = markdown(Table(header, rows))
    return f"{base.model} with one option changed. {facts(records[0], group.title)}\n\n{table}"


def gain(loss: Interval) -> str:
    """What a setting adds to the AUC, from what the plain setting has more."""
    assert loss.value is not None
    assert loss.low is not None
    assert loss.high is not None
    return f"{-loss.value:+.3f} [{-loss.high:+.3f}, {-loss.low:+.3f}]"


BLOCKS = {
    "lesions": ("mias-lesions.json", lesions_block),
    "lesion-changes": ("mias-lesions.json", lesion_changes_block),
    "lesion-attention": ("mias-lesions_attention.json", lesion_attention_block),
    "study": ("mias-seven-models.jsonl", study_block),
    "ablations": ("ablations/base.jsonl", ablations_block),
    "leakage": ("mias-leakage.json", leakage_block),
}


def updated(text: str) -> str:
    """``text`` with every block whose markers it has and whose record is there."""
    for name, (record, block) in BLOCKS.items():
        pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
        if (RESULTS / record).is_file() and re.search(pattern, text, re.DOTALL):
            content = block()
            text = re.sub(pattern, lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text, flags=re.DOTALL)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    before = arguments.page.read_text(encoding="utf-8")
    try:
        after = updated(before)
    except UserError as error:
        print(f"readme_study.py: {error}", file=sys.stderr)
        return 1
    if arguments.check:
        if after != before:
            print(f"{arguments.page}: its tables are not those of the records", file=sys.stderr)
        return int(after != before)
    write_text(arguments.page, after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
