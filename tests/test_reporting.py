"""Pages as a browser shows them: on a wide screen, on a phone and on paper, nothing is cut."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import sampled

from hmc_fast import UserError, create_model
from hmc_fast.bench.record import read_record
from hmc_fast.bench.report.pages import write_reports
from hmc_fast.checkpoint import CheckpointMetadata, LoadedModel
from hmc_fast.data import Preprocessing, read_mias, write_phantoms
from hmc_fast.explain import explain_film
from hmc_fast.explain.page import PageEntry, render_page
from hmc_fast.explain.pictures import film_figure
from hmc_fast.reporting import (
    between_marks,
    figures_whole,
    metric_title,
    milliseconds,
    percent,
    png_base64,
)
from hmc_fast.study import compare, read_study, write_study_reports

RESULTS = Path(__file__).parents[1] / "bench" / "results"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MEASURE = """<script>
const page = document.scrollingElement, cut = [];
for (const cell of document.querySelectorAll("th, td, img")) {
  const box = cell.getBoundingClientRect();
  if (box.width === 0) continue;
  if (box.left < 0 || box.right > page.clientWidth || cell.scrollWidth > Math.ceil(box.width))
    cut.push(cell.textContent || cell.alt);
}
// A word that stands in two lines has two boxes.
const broken = [];
for (const cell of document.querySelectorAll("th, td")) {
  const nodes = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  while (nodes.nextNode())
    for (const word of nodes.currentNode.data.matchAll(/[A-Za-z]{2,14}/g)) {
      const range = document.createRange();
      range.setStart(nodes.currentNode, word.index);
      range.setEnd(nodes.currentNode, word.index + word[0].length);
      if (range.getClientRects().length > 1) broken.push(word[0]);
    }
}
const seen = document.querySelectorAll("td").length;
const style = getComputedStyle(document.body);
const colours = [style.color, style.backgroundColor];
const result = {
  width: page.clientWidth, needed: page.scrollWidth, cells: seen, cut, broken, colours,
};
parent.postMessage(JSON.stringify(result), "*");
</script>"""
# A window is never narrower than 500 pixels; a frame in it can be.
FRAME = """<body><pre></pre><script>
onmessage = (event) => { document.querySelector("pre").textContent = event.data; };
</script><iframe src="measured.html" width="WIDTH" height="2000" style="border: 0"></iframe></body>
"""


def bench_page(*names: str) -> Callable[[Path], Path]:
    records = [(name, read_record(RESULTS / f"{name}.jsonl")) for name in names]
    return lambda folder: write_reports(records, folder)[1]


def study_page(folder: Path) -> Path:
    study = read_study(RESULTS / "study" / "mias-seven-models.jsonl")
    return write_study_reports(compare([study]), folder)[1]


def explain_page(folder: Path) -> Path:
    torch.manual_seed(0)
    model = create_model("hmc_net_resnet18").eval()
    metadata = CheckpointMetadata(
        model.config, "malignant", ("rest", "malignant"), Preprocessing.square(64), {}, {}
    )
    write_phantoms(folder / "phantoms", patients=3, size=64)
    film = next(f for f in read_mias(folder / "phantoms") if f.severity == "malignant")
    found = explain_film(LoadedModel(model, metadata), film)
    path = folder / "explanations.html"
    entry = PageEntry(found, png_base64(film_figure(found)))
    path.write_text(render_page("mias, " * 30, ["a fact " * 40], [entry, entry]))
    return path


PAGES = {
    "main job": bench_page("mias-hmc_net_lesions-512-cpu"),
    "kernels": bench_page("cpu-kernels"),
    "mixed": bench_page("cpu-models", "cpu-kernels", "mias-hmc_net-224-cpu"),
    "steps": bench_page("cpu-kernels", "cpu-kernels"),
    "study": study_page,
    "explain": explain_page,
}


A4 = 703
"""CSS pixels between the margins of a page in ``style.css.j2``."""
DARK = "--blink-settings=preferredColorScheme=0"
BLACK, WHITE = "rgb(0, 0, 0)", "rgb(255, 255, 255)"


def measured(page: Path, width: int, *options: str) -> dict[str, Any]:
    """Widths in CSS pixels, the cells and pictures that are cut, and colours of text and page."""
    assert CHROMIUM is not None
    copy = page.with_name("measured.html")
    copy.write_text(page.read_text().replace("</body>", f"{MEASURE}</body>"))
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    window = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=2100,2100"]
    arguments = [*window, *options, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
    shown = subprocess.run(
        [CHROMIUM, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search("<pre>(.+?)</pre>", shown.stdout)
    assert found is not None
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


@pytest.mark.systems
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("name", sampled(PAGES, ["main job", "explain"]))
def test_nothing_is_cut_in_a_browser(name: str, tmp_path: Path) -> None:
    page = PAGES[name](tmp_path)
    for width in (2000, 1280, 1240, 400):
        assert_whole(measured(page, width), width)


def assert_whole(result: dict[str, Any], width: int) -> None:
    """Nothing of a measured page is cut, and it has a table."""
    assert result["width"] == width
    assert result["needed"] <= width
    assert result["cut"] == []
    assert result["broken"] == []
    assert result["cells"] > 0


def as_printed(page: Path) -> Path:
    """A copy of ``page`` whose style on a screen is that on paper."""
    text = page.read_text()
    assert "@media print" in text
    assert "@media screen" in text
    printed = page.with_name("printed.html")
    text = text.replace("@media print", "@media all").replace("@media screen", "@media not all")
    printed.write_text(text)
    return printed


@pytest.mark.systems
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("name", PAGES)
def test_paper_shows_all_in_black_on_white_to_a_reader_of_dark_pages(
    name: str, tmp_path: Path
) -> None:
    page = PAGES[name](tmp_path)
    result = measured(as_printed(page), A4, DARK)
    assert_whole(result, A4)
    assert result["colours"] == [BLACK, WHITE]
    assert measured(page, A4, DARK)["colours"] != [BLACK, WHITE]


@pytest.mark.systems
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_long_table_names_its_columns_on_every_printed_page(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    page = PAGES["study"](tmp_path)
    rows = re.findall(r"<tbody>(.*?)</tbody>", page.read_text(), re.DOTALL)
    assert rows
    assert not any("<th" in text for text in rows)
    pdf = tmp_path / "page.pdf"
    options = ["--headless", "--no-sandbox", f"--print-to-pdf={pdf}"]
    subprocess.run([CHROMIUM, *options, page.as_uri()], check=True, timeout=120)
    assert pdf.read_bytes().startswith(b"%PDF")


def test_figures_stay_in_one_line() -> None:
    for text, space in (
        ("0.632 ± 0.035", 0),
        ("0.707 [0.605, 0.803]", 1),
        ("98.4 / 112 / 118", 0),
        ("69 %", 0),
        ("0 of 10, worst 121", 3),
        ("not measured", 1),
    ):
        assert figures_whole(text).count(" ") == space
        assert figures_whole(text).replace("\u00a0", " ") == text


@pytest.mark.systems
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_table_too_wide_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "wide.html"
    page.write_text(f"<body><table><tr><td>{'x' * 400}</td></tr></table></body>")
    assert measured(page, 1280)["cut"]


@pytest.mark.systems
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_word_in_two_lines_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "narrow.html"
    cell = '<td style="width: 3em; max-width: 3em; overflow-wrap: anywhere">probabilities</td>'
    page.write_text(f"<body><table><tr>{cell}</tr></table></body>")
    assert measured(page, 1280)["broken"] == ["probabilities"]


def test_figures_of_all_reports_have_one_format() -> None:
    assert [milliseconds(value) for value in (0.1234, 1.234, 12.34, 123.4, None)] == [
        "0.123",
        "1.23",
        "12.3",
        "123",
        "–",
    ]
    assert [percent(0.1734), percent(0.1734, 1)] == ["17 %", "17.3 %"]
    assert [metric_title(name) for name in ("auc_roc", "f1", "recall")] == [
        "AUC-ROC",
        "F1",
        "recall",
    ]


def test_a_block_is_made_again_and_a_page_without_its_marks_is_refused() -> None:
    page = "a\n<!-- x -->\nold\n<!-- y -->\nb\n"
    new = between_marks(page, "<!-- x -->", "<!-- y -->", "new")
    assert new == page.replace("old", "new")
    assert between_marks(new, "<!-- x -->", "<!-- y -->", "new") == new
    for damaged in ("a\nb\n", page.replace("<!-- y -->", ""), page * 2):
        with pytest.raises(UserError, match="needs the lines <!-- x --> and <!-- y -->"):
            between_marks(damaged, "<!-- x -->", "<!-- y -->", "new")
