"""Records, comparison, targets, reports and the README's table, from records as data."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hmc_fast import UserError
from hmc_fast.bench.jobs.targets import TARGETS, target_rows
from hmc_fast.bench.record import Measurement, Record, keep_earlier, read_record, write_record
from hmc_fast.bench.report.compare import compare, differences_between, has_regression, noise_band
from hmc_fast.bench.report.pages import series_of, write_reports
from hmc_fast.bench.report.plots import _label
from hmc_fast.bench.report.readme import (
    BEGIN,
    CPU_BEGIN,
    CPU_END,
    END,
    update_cpu,
    update_main,
    update_targets,
)
from hmc_fast.bench.report.tables import fold_table, image_size
from hmc_fast.bench.run import with_speed_ups
from hmc_fast.cli.app import run


@pytest.fixture
def path(record: Record, tmp_path: Path) -> Path:
    path = tmp_path / "record.jsonl"
    write_record(path, record)
    return path


def slowed(record: Record, factor: float, peer: str = "triton") -> Record:
    def scale(row: Measurement) -> Measurement:
        if row.peer != peer or row.p50_ms is None or row.p20_ms is None or row.p80_ms is None:
            return row
        times = {"p20_ms": row.p20_ms, "p50_ms": row.p50_ms, "p80_ms": row.p80_ms}
        return replace(row, **{name: factor * value for name, value in times.items()})  # type: ignore[arg-type]  # fields by name

    return replace(record, measurements=[scale(row) for row in record.measurements])


def test_a_run_whose_free_parts_are_damaged_is_one_line(
    record: Record, tmp_path: Path, fails: Callable[..., str]
) -> None:
    path = tmp_path / "record.jsonl"
    write_record(path, replace(record, device={"kind": 3}, environment={"packages": 3}))
    assert "cannot be shown, the line of the run is damaged" in fails("bench", "report", path)


def test_a_record_is_reread_as_it_was(record: Record, path: Path) -> None:
    assert read_record(path) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line[:-9], "line 3: is no line of a record"),
        (lambda line: line.replace("bench/2", "bench/9"), "its schema is hmc-fast-bench/9"),
        (
            lambda line: line.replace('"status": "ok"', '"status": "fine"'),
            "status: Input",
        ),
        (lambda line: line.replace('"p50_ms": 4.0', '"p50_ms": "4"'), "p50_ms: Input"),
        (lambda line: line.replace('"p50_ms": 4.0', '"p50_ms": 0.0'), "a time is not above 0"),
        (lambda line: line.replace('"peer": "', '"peer": "\\u001b[31m'), "control characters"),
        (lambda line: line.replace('"p50_ms": 4.0', '"p50_ms": NaN'), "NaN is no JSON number"),
        (lambda line: line.replace('"samples": 10', '"samples": 10.5'), "samples: Input"),
        (lambda line: line.replace('"samples"', '"sample"'), "sample: Unexpected"),
        (lambda line: "[]", "line 3"),
    ],
)
def test_a_damaged_line_is_reported_and_the_rest_is_read(
    record: Record, path: Path, change: Callable[[str], str], message: str
) -> None:
    lines = path.read_text().splitlines()
    assert change(lines[2]) != lines[2]
    path.write_text("\n".join([*lines[:2], change(lines[2]), *lines[3:]]))
    reread = read_record(path)
    assert reread.measurements == record.measurements[1:]
    (problem,) = reread.problems
    assert message in problem


def test_a_duration_below_zero_is_refused(path: Path) -> None:
    study = {"data": {}, "protocol": "patient", "attention_share": {}, "fold_metrics": []}
    header, *rest = path.read_text().splitlines()
    for seconds in (3.5, -3.5):
        changed = {**json.loads(header), "study": {**study, "seconds": seconds}}
        path.write_text("\n".join([json.dumps(changed), *rest]))
        if seconds > 0:
            assert read_record(path).study is not None
            continue
        with pytest.raises(UserError, match="seconds is not above 0"):
            read_record(path)


def test_a_file_without_its_run_is_refused(path: Path) -> None:
    lines = path.read_text().splitlines()
    for damaged in (lines[1:], ["not json"], [], [lines[0].replace('"options"', '"choices"')]):
        path.write_text("\n".join(damaged))
        with pytest.raises(UserError, match="no line of kind run"):
            read_record(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_record(path.with_name("missing.jsonl"))


def test_an_earlier_record_is_kept_under_the_time_of_its_run(record: Record, path: Path) -> None:
    assert keep_earlier(path.with_name("none.jsonl")) is None
    names = []
    for _ in range(2):
        write_record(path, record)
        kept = keep_earlier(path)
        assert not path.exists()
        assert read_record(kept) == record
        names.append(kept.name)
    assert names == ["record-20260101T000000.jsonl", "record-20260101T000000-2.jsonl"]
    path.write_text("no record")
    assert keep_earlier(path).read_text() == "no record"


def test_the_same_record_is_no_regression(record: Record) -> None:
    comparisons = compare(record, record)
    assert {c.verdict for c in comparisons} == {"same", "not timed"}
    assert not has_regression(comparisons)


def test_slower_beyond_the_noise_is_a_regression(record: Record) -> None:
    for factor, verdict in ((1.04, "same"), (1.2, "slower"), (0.8, "faster"), (0.97, "same")):
        comparisons = compare(record, slowed(record, factor))
        ours = [c for c in comparisons if " triton" in c.label]
        assert {c.verdict for c in ours} == {verdict}
        assert ours[0].ratio == pytest.approx(factor)
        assert has_regression(comparisons) == (verdict == "slower")


def test_the_noise_band_grows_with_the_spread(record: Record) -> None:
    row = record.measurements[0]
    assert noise_band(row, row) == 0.05
    noisy = replace(row, p20_ms=3.0, p80_ms=5.0)
    assert noise_band(row, noisy, 0.0) == pytest.approx((0.02**2 + 0.25**2) ** 0.5)
    assert compare(
        replace(record, measurements=[noisy]), slowed(replace(record, measurements=[noisy]), 1.2)
    )[0].verdict == ("too noisy to judge")


def test_missing_and_broken_rows_have_a_verdict_each(record: Record) -> None:
    rows = record.measurements
    broken = replace(rows[0], status="parity failed", reason="d q: …", p50_ms=None)
    skipped = replace(rows[1], status="skipped", reason="over", p50_ms=None)
    (failed,) = (row for row in rows if row.peer == "sdpa_math")
    mended = replace(failed, p50_ms=3.0, status="ok")
    extra = replace(rows[0], case="hsa_c4@1024x8")
    newer = replace(record, measurements=[broken, skipped, mended, *rows[4:8], extra])
    by_label = {c.label: c for c in compare(record, newer)}
    assert by_label[rows[0].label].verdict == "broke"
    assert "d q" in (by_label[rows[0].label].note or "")
    assert by_label[rows[1].label].verdict == "not timed"
    assert by_label[rows[2].label].verdict == "only old"
    assert by_label[mended.label].verdict == "mended"
    assert by_label[extra.label].verdict == "only new"


def test_another_device_is_told(record: Record) -> None:
    other = replace(record, device={**record.device, "name": "NVIDIA H100"})
    assert differences_between(record, other) == ["device name: NVIDIA H200 and NVIDIA H100"]


def test_compare_tells_a_regression_by_its_exit_code(
    record: Record, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = tmp_path / "slower.jsonl"
    write_record(slower, slowed(record, 1.5))
    assert run(["bench", "compare", str(path), str(path)]) == 0
    assert run(["bench", "compare", str(path), str(slower)]) == 3
    assert "slower" in capsys.readouterr().out
    assert run(["bench", "compare", str(slower), str(path)]) == 0
    assert run(["bench", "compare", str(path), str(slower), "--band", "0.6"]) == 0
    capsys.readouterr()
    assert run(["bench", "compare", str(path), str(slower), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["regression"] is True
    slower.write_text("nothing\n")
    assert run(["bench", "compare", str(path), str(slower)]) == 1


def test_speed_up_is_over_the_fastest_other_peer(record: Record) -> None:
    rows = {(r.peer, r.task): r for r in with_speed_ups(record.measurements[:8])}
    assert rows["triton", "forward"].speed_up == pytest.approx(8.8 / 4.0)
    assert rows["sdpa_flash", "forward"].speed_up == pytest.approx(4.0 / 8.8)
    assert rows["triton", "backward"].speed_up == pytest.approx(14 / 12)


def test_targets_are_met_missed_or_not_measured(record: Record) -> None:
    states = [row[-1] for row in target_rows(record)]
    figures = [row[-2] for row in target_rows(record)]
    assert len(states) == len(TARGETS)
    assert (figures[0], states[0]) == ("62 %", "not met")  # 500 of 800 TFLOP/s
    assert (figures[1], states[1]) == ("21 %", "not met")
    assert (figures[2], states[2]) == ("2.20×", "stretch met")
    assert (figures[3], states[3]) == ("1.43×", "met")
    assert (figures[4], states[4]) == ("–", "not measured")
    assert (figures[6], states[6]) == ("1.10×", "met")
    assert (figures[7], states[7]) == ("1.50×", "not met")
    assert [row[-1] for row in target_rows(None)] == ["not measured"] * len(TARGETS)


def test_a_target_compares_at_the_same_precision(record: Record) -> None:
    flash = next(r for r in record.measurements if r.peer == "sdpa_flash" and r.task == "forward")
    fast = replace(flash, precision="fp16", p50_ms=1.0)
    other = replace(record, measurements=[*record.measurements, fast])
    assert target_rows(other)[2] == target_rows(record)[2]
    fast = replace(flash, peer="flash_attention_3", p50_ms=3.6)
    faster = replace(record, measurements=[*record.measurements, fast])
    assert target_rows(faster)[2][-2:] == ["0.90×", "not met"]


def test_reports_hold_every_row_reason_and_plot(record: Record, path: Path, tmp_path: Path) -> None:
    damaged = replace(record, problems=["record.jsonl line 7: is no line of a record"])
    markdown, html = write_reports([("now", damaged)], tmp_path)
    for text in (markdown.read_text(), html.read_text()):
        for expected in (
            "NVIDIA H200",
            "2.20×",
            "out of memory",
            "line 7",
            "wgmma",
            "244",
            "sm clock 1980 before, 1755 after (MHz)",
            "free attention would make it 4.00×",
            "stretch met",
        ):
            assert expected in text
    assert html.read_text().count("data:image/png;base64,") == 4
    assert "What every step brought" not in html.read_text()
    assert run(["bench", "report", str(path), str(path), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.html").is_file()


def test_a_page_says_which_attention_a_cpu_had(record: Record, tmp_path: Path) -> None:
    assert "Our attention" not in write_reports([("now", record)], tmp_path)[0].read_text()
    record.environment["cpu_attention"] = "there is no C++ compiler"
    for page in write_reports([("now", record)], tmp_path):
        assert "Our attention on this CPU: there is no C++ compiler" in page.read_text()


def test_records_of_the_same_rows_are_steps_of_one_part(record: Record, tmp_path: Path) -> None:
    older = slowed(record, 3)
    markdown, html = write_reports([("first", older), ("second", record)], tmp_path)
    assert html.read_text().count("data:image/png;base64,") == 5
    assert "What every step brought" in html.read_text()
    assert "| measurement | first | second |" in markdown.read_text()
    assert "| hsa_c3@1024x8 forward bf16 triton | 12.0 | 4.00 |" in markdown.read_text()
    first, *rest = record.measurements
    broken = replace(record, measurements=[replace(first, status="error", p50_ms=None), *rest])
    markdown, _ = write_reports([("first", older), ("broken", broken)], tmp_path)
    assert "| hsa_c3@1024x8 forward bf16 triton | 12.0 | – |" in markdown.read_text()


def test_records_of_different_rows_have_a_part_each(record: Record, tmp_path: Path) -> None:
    operators = replace(record, measurements=record.kernel_rows)
    models = replace(record, measurements=record.model_rows, ceilings=[], resources=[])
    elsewhere = replace(models, device={**models.device, "name": "NVIDIA H100"})
    named = [("operators", operators), ("models", models), ("elsewhere", elsewhere)]
    assert [[name for name, _ in group] for group in series_of(named)] == [
        ["operators"],
        ["models"],
        ["elsewhere"],
    ]
    for path in write_reports(named, tmp_path):
        text = path.read_text()
        for expected in ("Benchmark records: operators, models, elsewhere", "wgmma", "H100"):
            assert expected in text
        assert "hmc_net@1024x8" in text
        assert "hsa_c3@1024x8" in text


def test_images_that_are_not_square_are_named_so_everywhere(tmp_path: Path) -> None:
    results = Path(__file__).parents[3] / "bench" / "results"
    record = read_record(results / "mias-hmc_net_lesions-512-cpu.jsonl")
    assert image_size(record, 512) == "512×320"
    assert _label(record, record.measurements[0]).startswith("512×320 ")
    for path in write_reports([("main", record)], tmp_path):
        text = path.read_text()
        assert "512²" not in text
        assert "at 512×320: 23.8 %" in text
        assert "lesion head fitted to the circles without an epoch" in text
        assert "last epoch" not in text


def test_load_and_shares_over_the_ceiling_stand_in_the_table(
    record: Record, tmp_path: Path
) -> None:
    first, second, *rest = record.measurements
    loaded = replace(first, load={"others_percent": 40.0, "steal_percent": 0.0, "attempts": 3})
    over = replace(second, ceiling_share=1.26)
    markdown, _ = write_reports(
        [("now", replace(record, measurements=[loaded, over, *rest]))], tmp_path
    )
    lines = [line for line in markdown.read_text().splitlines() if line.startswith("|")]
    assert any("other processes 40 %, quietest of 3" in line for line in lines)
    (doubtful,) = (line for line in lines if "126 %" in line)
    assert "over the ceiling, doubtful" in doubtful


def test_the_main_job_marks_load_in_its_table() -> None:
    results = Path(__file__).parents[3] / "bench" / "results"
    record = read_record(results / "mias-hmc_net_lesions-512-cpu.jsonl")
    first, *rest = (row for row in record.measurements if row.status == "ok")
    loaded = replace(first, load={"others_percent": 40.0, "steal_percent": 0.0, "attempts": 3})
    header, rows = fold_table(replace(record, measurements=[loaded, *rest]))
    marks = [row[header.index("under load")] for row in rows]
    assert marks == ["other processes 40 %, quietest of 3", *["–"] * len(rest)]


def test_the_main_jobs_table_begins_with_what_ran() -> None:
    results = Path(__file__).parents[3] / "bench" / "results"
    record = read_record(results / "mias-hmc_net_lesions-512-cpu.jsonl")
    first, second, third, *_ = (row for row in record.measurements if row.status == "ok")
    missing = replace(first, peer="triton", status="unavailable", reason="no GPU")
    built = replace(first, peer="tensorrt", status="built", reason="no GPU")
    wrong = replace(second, status="parity failed")
    header, rows = fold_table(replace(record, measurements=[missing, built, wrong, third]))
    peers = [row[header.index("peer")] for row in rows]
    assert peers == [second.peer, third.peer, "tensorrt", "triton"]


def test_a_page_says_how_long_the_main_job_took(tmp_path: Path) -> None:
    results = Path(__file__).parents[3] / "bench" / "results"
    record = read_record(results / "mias-hmc_net_lesions-512-cpu.jsonl")
    for seconds, end in ((1770.0, "` in 30 minutes."), (None, "`.")):
        write_record(
            tmp_path / "r.jsonl", replace(record, study=replace(record.study, seconds=seconds))
        )
        readme = Path(shutil.copy(results.parents[1] / "README.md", tmp_path))
        assert update_main(readme, tmp_path / "r.jsonl")
        assert f"{record.environment['command']}{end}\n" in readme.read_text()


def test_report_of_a_main_job_record(tmp_path: Path) -> None:
    results = sorted((Path(__file__).parents[3] / "bench" / "results").glob("mias-*.jsonl"))
    assert run(["bench", "report", str(results[0]), "--out", str(tmp_path)]) == 0
    assert "patient-disjoint" in (tmp_path / "report.md").read_text()
    assert run(["bench", "report", str(tmp_path / "none.jsonl")]) == 1


def test_the_committed_pages_are_up_to_date(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    results = shutil.copytree(root / "bench" / "results", tmp_path / "bench" / "results")
    shutil.copytree(root / "docs", tmp_path / "docs")
    readme = Path(shutil.copy(root / "README.md", tmp_path))
    benchmark = tmp_path / "docs" / "benchmark.md"
    targets = sorted(results.glob("targets-*.jsonl"))
    assert not update_targets(benchmark, targets[0] if targets else None)
    (main,) = results.glob("mias-hmc_net_lesions-512-*.jsonl")
    assert not update_main(readme, main)
    assert not update_cpu(benchmark, sorted(results.glob("cpu-*.jsonl")))
    assert "| hmc_net@1024x1 | inference | cpu | fp32 |" in benchmark.read_text(encoding="utf-8")


def test_each_processor_has_a_table_of_its_own(path: Path, tmp_path: Path) -> None:
    """Two processors of one name differ by their instructions."""
    lines = path.read_text().splitlines()
    run_line = json.loads(lines[0])
    run_line["environment"]["cpu_instructions"] = "AVX2"
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join([json.dumps(run_line), *lines[1:]]) + "\n")
    page = tmp_path / "page.md"
    page.write_text(f"{CPU_BEGIN}\n{CPU_END}\n")
    assert update_cpu(page, [path, other])
    text = page.read_text()
    name = run_line["device"]["name"]
    assert f"**{name}**" in text
    assert f"**{name}, AVX2**" in text
    assert text.count("| case | task |") == 2
    first, second = text.split(f"**{name}, AVX2**")
    assert path.name in first
    assert "other.jsonl" not in first
    assert "other.jsonl" in second


def test_the_readme_shows_the_record_and_nothing_else(path: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nrest\n")
    assert update_targets(readme, None)
    text = readme.read_text()
    assert "No record of a GPU is committed yet" in text
    assert text.count("not measured") == len(TARGETS)
    assert update_targets(readme, path)
    text = readme.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nrest\n")
    assert "2.20×" in text
    assert "hmc-fast bench targets" in text
    assert not update_targets(readme, path)
    readme.write_text("# Title\n")
    with pytest.raises(UserError, match="needs the lines"):
        update_targets(readme, path)
    path.write_text(path.read_text() + "broken\n")
    readme.write_text(f"{BEGIN}\n{END}\n")
    with pytest.raises(UserError, match="is no line of a record"):
        update_targets(readme, path)


def test_markdown_brings_no_tags_and_no_cells_of_its_own(record: Record, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)> | x"
    device = {**record.device, "name": hostile}
    refused = replace(record.measurements[0], status="error", reason=hostile, peer="p|q")
    changed = replace(record, device=device, measurements=[*record.measurements, refused])
    for path in write_reports([("now", changed)], tmp_path):
        text = path.read_text()
        assert "<img src=x" not in text
        assert "&lt;img src=x" in text
