"""Write the README's study tables from the records under bench/results/study.

readme_study.py README.md writes them between their HTML comments; --check only tells whether they
are up to date.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from hmc_fast.data.folds import PROTOCOL_TITLES
from hmc_fast.study import compare, read_study
from hmc_fast.study.tables import Table, detectable_gap, metrics_table

RESULTS = Path(__file__).parents[1] / "bench" / "results" / "study"


def markdown(table: Table) -> str:
    """The table without its note."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def study_block() -> str:
    """Metrics over folds of the seven models, what they were trained on, and what can be told."""
    record = read_study(RESULTS / "mias-seven-models.jsonl")
    (group,) = compare([record]).groups
    config, data, environment = record.config, record.data, record.environment
    test = group.friedman["auc_roc"]
    weights = config["weights"]
    start = f"weights {weights} (other trunks start at random)" if weights else "random weights"
    facts = (
        f"{group.title}; {data['films']} films of {data['patients']} patients, task "
        f"{config['task']}, {config['size']}², {config['epochs']} epochs, {start}, "
        f"{environment['gpu'] or environment['cpu']}."
    )
    gap = test if isinstance(test, str) else detectable_gap(test)
    return f"{facts}\n\n{markdown(metrics_table(group))}\n\n{gap}"


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


BLOCKS = {
    "study": ("mias-seven-models.jsonl", study_block),
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
    parser.add_argument("readme", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    before = arguments.readme.read_text(encoding="utf-8")
    after = updated(before)
    if arguments.check:
        if after != before:
            print(f"{arguments.readme}: its tables are not those of the records", file=sys.stderr)
        return int(after != before)
    arguments.readme.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
