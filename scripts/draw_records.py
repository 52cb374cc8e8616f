"""Draw docs/leak.svg and docs/speed.svg from committed records and nothing else.

draw_records.py FOLDER writes both into FOLDER.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hmc_fast.bench.peers import family_names
from hmc_fast.bench.record import Measurement, read_record
from hmc_fast.files import read_json, write_text
from hmc_fast.reporting import milliseconds

RESULTS = Path(__file__).parents[1] / "bench" / "results"
LEAKAGE = RESULTS / "study" / "mias-leakage.json"
MODELS = RESULTS / "cpu-models.jsonl"
ENGINES = RESULTS / "engine-builds.json"
ENGINE_TARGET = "sm_89"
MAIN = RESULTS / "mias-hmc_net_lesions-512-cpu.jsonl"
CASE = "hmc_net@1024x1"

WIDTH, LEFT, RIGHT = 720, 190, 90
BAR, STEP, HEAD, GAP = 20, 28, 58, 18
# Fonts are large for the picture's width: a phone shows it at half its size. The colours are
# those of all reports; the dark ones are lighter.
STYLE = """
  text { font: 17px system-ui, sans-serif; fill: #1b1f24; }
  .title { font-weight: 600; }
  .note { font-size: 15px; fill: #57606a; }
  .name { text-anchor: end; }
  .bar { fill: #8c8c8c; } .ours { fill: #0072b2; } .leaks { fill: #d55e00; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .note { fill: #9da7b3; }
    .ours { fill: #56b4e9; } .leaks { fill: #e69f00; }
  }
"""


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its value and how that is written; ``kind`` is a colour of the style."""

    name: str
    value: float
    label: str
    kind: str = "bar"


@dataclass(frozen=True)
class Panel:
    """Bars on one scale that starts at zero, below a title and a line of explanation."""

    title: str
    note: str
    bars: Sequence[Bar]
    full: float | None = None
    """The value of a bar as long as the panel; the longest bar's without it."""

    @property
    def height(self) -> int:
        return HEAD + STEP * len(self.bars) + GAP

    def svg(self, top: int) -> str:
        longest = self.full or max(bar.value for bar in self.bars)
        lines = [
            f'<text class="title" x="8" y="{top + 22}">{self.title}</text>',
            f'<text class="note" x="8" y="{top + 43}">{self.note}</text>',
        ]
        for index, bar in enumerate(self.bars):
            y = top + HEAD + index * STEP
            width = (WIDTH - LEFT - RIGHT) * bar.value / longest
            lines += [
                f'<text class="name" x="{LEFT - 10}" y="{y + 16}">{bar.name}</text>',
                f'<rect class="{bar.kind}" x="{LEFT}" y="{y}" width="{width:.1f}" '
                f'height="{BAR}" rx="2"/>',
                f'<text x="{LEFT + width + 8:.1f}" y="{y + 16}">{bar.label}</text>',
            ]
        return "\n".join(lines)


def picture(name: str, panels: Sequence[Panel]) -> str:
    """The panels below each other; ``name`` is what a screen reader says."""
    tops = [sum(panel.height for panel in panels[:index]) for index in range(len(panels))]
    body = "\n".join(panel.svg(top) for panel, top in zip(panels, tops, strict=True))
    height = sum(panel.height for panel in panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{name}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def leak() -> str:
    """Accuracy and AUC of the same training, split by patient and split after rotating."""
    rows = json.loads(LEAKAGE.read_text(encoding="utf-8"))
    panels = []
    for what in dict.fromkeys(row["what"] for row in rows):
        found = {row["protocol"]: row for row in rows if row["what"] == what}
        bars = [
            Bar(f"{title}, {split}", found[protocol][key], f"{found[protocol][key]:.3f}", kind)
            for key, title in (("accuracy", "accuracy"), ("auc", "AUC"))
            for protocol, split, kind in (
                ("patient", "by patient", "ours"),
                ("augment-first", "leaking", "leaks"),
            )
        ]
        copies = found["augment-first"]["copies"]
        note = f"leaking: {copies} rotated copies of each film, then folds of copies"
        panels.append(Panel(what, note, bars, full=1.0))
    return picture("Accuracy and AUC, split by patient and split after rotating", panels)


def speed() -> str:
    """Latency of HMC-Net at 1024², and what each peer's process holds in the main job."""
    models, main = read_record(MODELS), read_record(MAIN)
    threads = models.environment["cpu_threads"]
    latencies = []
    for precision in ("fp32", "bf16"):
        timed = [
            row
            for row in models.measurements
            if (row.case, row.task, row.precision) == (CASE, "inference", precision)
            and row.p50_ms is not None
        ]
        title = f"HMC-Net, one film of 1024×1024, median latency in ms, {precision}"
        note = f"{models.device['name']}, {threads} threads; blue: ours; shorter is better"
        bars = [_bar(row, row.p50_ms, milliseconds(row.p50_ms)) for row in _sorted(timed, "p50_ms")]
        latencies.append(Panel(title, note, bars))
    assert main.study is not None
    held = [row for row in main.measurements if row.peak_mib is not None]
    memory = Panel(
        "HMC-Net with lesion head, peak memory of a process in MiB",
        f"{main.study.data['films']} films, 512×320, {main.device['name']}; blue: ours; "
        "shorter is better",
        [
            replace(
                _bar(row, row.peak_mib, f"{row.peak_mib:.0f}"), name=f"{row.peer}, {row.precision}"
            )
            for row in _sorted(held, "peak_mib")
        ],
    )
    return picture(
        "Latency and memory of HMC-Net on a CPU, memory of its engines",
        [*latencies, memory, _engines()],
    )


def _engines() -> Panel:
    """What an engine of HMC-Net takes for activations, by the form of its attention."""
    record = read_json(ENGINES)
    taken = {
        build["form"]: build["engine"]["activation_bytes"] / 1e9
        for build in record["builds"]
        if (build["model"], build["target"]) == ("hmc_net", ENGINE_TARGET)
    }
    least = min(taken.values())
    bars = [
        Bar(form, value, f"{value:.2f}", "ours" if value == least else "bar")
        for form, value in sorted(taken.items(), key=lambda item: item[1])
    ]
    title = "HMC-Net as a TensorRT engine, activations in GB by form of attention"
    note = (
        f"{record['size']}², {record['precision']}, batch {record['batch']}, built for "
        f"{ENGINE_TARGET} by {record['builder']}, not run; shorter is better"
    )
    return Panel(title, note, bars)


def _sorted(rows: Sequence[Measurement], key: str) -> list[Measurement]:
    return sorted(rows, key=lambda row: getattr(row, key))


def _bar(row: Measurement, value: float | None, label: str) -> Bar:
    assert value is not None
    return Bar(row.peer, value, label, "ours" if row.peer in family_names("ours") else "bar")


PICTURES = {"leak.svg": leak, "speed.svg": speed}


if __name__ == "__main__":
    for file, draw in PICTURES.items():
        write_text(Path(sys.argv[1]) / file, draw())
