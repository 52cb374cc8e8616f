"""Scripts that measure, keep a record and show it in a page."""

import sys
from pathlib import Path

import pytest

from hmc_fast.bench.report.measured import run_script


def run(*words: object) -> None:
    sys.argv = ["measure.py", *map(str, words)]
    run_script("", lambda: {"figure": 3}, lambda text, record: f"{text}{record['figure']}")


@pytest.fixture(autouse=True)
def _arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [])


def test_a_record_is_made_and_shown_or_only_shown(tmp_path: Path) -> None:
    record, page = tmp_path / "record.json", tmp_path / "page.md"
    page.write_text("it is ")
    run(record, page)
    assert page.read_text() == "it is 3"
    record.write_text('{"figure": 4}')
    run("--table", record, page)
    assert page.read_text() == "it is 34"


def test_a_damaged_record_is_one_line_and_leaves_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, page = tmp_path / "record.json", tmp_path / "page.md"
    record.write_text('{"figure": ')
    page.write_text("as it was")
    with pytest.raises(SystemExit) as ended:
        run("--table", record, page)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"measure.py: {record}: cannot be read as JSON")
    assert page.read_text() == "as it was"


def test_a_page_that_is_not_there_is_one_line_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, page = tmp_path / "record.json", tmp_path / "page.md"
    with pytest.raises(SystemExit) as ended:
        run(record, page)
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"measure.py: {page}: No such file or directory\n"
    assert not record.exists()
