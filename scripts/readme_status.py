"""Write the README's status box from committed records: what is measured, built or unmeasured.

readme_status.py PAGE
"""

import re
import sys
from pathlib import Path

from hmc_fast.bench.record import Measurement, Record, read_record
from hmc_fast.files import write_text
from hmc_fast.reporting import between_marks, number
from hmc_fast.study import lesion_figures, read_lesion_record

RESULTS = Path(__file__).parents[1] / "bench" / "results"
LESIONS = RESULTS / "study" / "mias-lesions.json"
MODELS = "hmc_net@1024x1"
BEGIN, END = "<!-- status:begin -->", "<!-- status:end -->"
BUILDS = re.compile(r"(?m)^(\d+) builds, (\d+) failing")
KERNELS = re.compile(r"(?m)^\| (\w+) \|")
"""Names in a table's first column, and that column's own."""


def records() -> list[tuple[str, Record]]:
    """Every committed record of the benchmark with its path in the repository."""
    return [(f"bench/results/{path.name}", read_record(path)) for path in _files("*.jsonl")]


def accuracy_row() -> list[str]:
    """The mean over seeds of the fixed recipe's AUC, breasts compared."""
    record = read_lesion_record(LESIONS)
    figure = next(f for f in lesion_figures(record) if f.label.startswith("AUC: 2v"))
    data = record.data
    found = (
        f"AUC {figure.mean}, {data['films']} films of {data['patients']} patients, "
        f"{record.settings.folds} patient-disjoint folds, {len(record.seeds)} seeds"
    )
    return [
        "accuracy, with lesion circles",
        "measured",
        found,
        _link(f"bench/results/study/{LESIONS.name}"),
    ]


def cpu_row() -> list[str]:
    """HMC-Net on a CPU by our attention, against eager PyTorch in the same run."""
    for path, record in records():
        if record.device.get("kind") == "cuda":
            continue
        found = [text for p in ("fp32", "bf16") if (text := _cpu_figures(record, p))]
        if found:
            text = f"HMC-Net at 1024², a film: {'; '.join(found)}"
            return ["attention on a CPU", "measured", text, _link(path)]
    return ["attention on a CPU", "unmeasured", "", "–"]


def _cpu_figures(record: Record, precision: str) -> str | None:
    rows = {r.peer: r for r in _timed(record) if (r.case, r.precision) == (MODELS, precision)}
    if not {"cpu_prepared", "eager", "openvino"} <= set(rows):
        return None
    ours, eager, openvino = (rows[p].p50_ms for p in ("cpu_prepared", "eager", "openvino"))
    assert ours is not None
    assert eager is not None
    assert openvino is not None
    return (
        f"{precision} {ours / 1e3:.1f} s, eager PyTorch {eager / 1e3:.1f} s, "
        f"OpenVINO {openvino / 1e3:.1f} s"
    )


def kernels_row() -> list[str]:
    """Fused kernels: timed on a GPU, or only compiled."""
    for path, record in records():
        rows = [r for r in _timed(record) if r.peer == "triton"]
        if record.device.get("kind") == "cuda" and rows:
            share = max(rows, key=lambda row: row.ceiling_share or 0)
            found = (
                f"{record.device['name']}: {len(rows)} rows, best share of the ceiling "
                f"{number(share.ceiling_share, '{:.0%}')} ({share.case}, {share.task})"
            )
            return ["fused GPU kernels", "measured", found, _link(path)]
    tables = _files("kernel-resources/triton-*.md")
    texts = {path: path.read_text(encoding="utf-8") for path in tables}
    every = {name for text in texts.values() for name in KERNELS.findall(text)}
    found = "; ".join(
        f"{path.stem.replace('triton-', 'Triton ')}: {count[1]} builds, {count[2]} failing"
        + ("" if every <= set(KERNELS.findall(text)) else " (before the newest kernels)")
        for path, text in texts.items()
        if (count := BUILDS.search(text))
    )
    return [
        "fused GPU kernels",
        "built, no speed measured",
        found,
        "[tables](docs/kernels.md#fused-kernels)",
    ]


def runtime_row() -> list[str]:
    """Exported graphs on a CPU: the largest difference from the checkpoint over held-out films."""
    for path, record in records():
        rows = [r for r in _timed(record) if r.peer in ("onnxruntime", "openvino") and r.scores]
        if record.study and not record.study.data["phantoms"] and rows:
            parts = [f"{record.study.data['films']} films, against PyTorch in fp32"]
            for precision in dict.fromkeys(r.precision for r in rows):
                scores = {r.peer: r.scores for r in rows if r.precision == precision and r.scores}
                worst = max(score.max_logit_difference for score in scores.values())
                flips = max(score.flipped_decisions for score in scores.values())
                parts.append(
                    f"{' and '.join(scores)} in {precision}: logits within {worst:.1e}, "
                    f"{flips} flipped decisions"
                )
            return ["ONNX graphs", "measured", "; ".join(parts), _link(path)]
    return ["ONNX graphs", "unmeasured", "", "–"]


def engines_row() -> list[str]:
    """TensorRT engines: timed, or no record of one."""
    for path, record in records():
        rows = [r for r in _timed(record) if r.peer.startswith("tensorrt")]
        if rows:
            found = f"{record.device['name']}: {len(rows)} rows"
            return ["TensorRT engines", "measured", found, _link(path)]
    return [
        "TensorRT engines",
        "built by tests, never run",
        "no record",
        "[export](docs/export.md)",
    ]


def status() -> str:
    """The box as Markdown."""
    rows = [accuracy_row(), cpu_row(), runtime_row(), engines_row(), kernels_row()]
    lines = [["part", "state", "figure", "source"], ["---"] * 4, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def updated(text: str) -> str:
    """``text`` with the box between its marks made again."""
    return between_marks(text, BEGIN, END, status())


def _files(pattern: str) -> list[Path]:
    return sorted(RESULTS.glob(pattern))


def _timed(record: Record) -> list[Measurement]:
    return [row for row in record.measurements if row.p50_ms is not None]


def _link(path: str) -> str:
    return f"[record]({path})"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    write_text(page, updated(page.read_text(encoding="utf-8")))
