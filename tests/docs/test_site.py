"""The site is built strictly, and every link of the built pages leads somewhere."""

import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import hmc_fast

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.systems


class Page(HTMLParser):
    """The anchors of a page, and the targets of its links and pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if name in ("href", "src") and tag in ("a", "img") and value:
                self.targets.append(value)


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """``mkdocs build`` of the checkout ``root``, with the package as it is installed here."""
    package = Path(hmc_fast.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(out)],
        cwd=root,
        env={**os.environ, "DOCS_PACKAGE": str(package), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = build(ROOT, out)
    assert built.returncode == 0, built.stderr
    return out


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    followed, broken = 0, []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            anchor = unquote(parts.fragment)
            missing = anchor and there in pages and anchor not in pages[there].anchors
            followed += 1
            if not there.is_file() or missing:
                broken.append(f"{path.relative_to(site)}: {target}")
    assert broken == []
    assert followed > 1000


def test_the_public_names_are_in_the_reference(site: Path) -> None:
    reference = Page(site / "reference" / "index.html")
    for name in ("kernels.attention", "models.create_model", "export.load", "data.read_films"):
        assert f"hmc_fast.{name}" in reference.anchors
    assert ":class:" not in (site / "reference" / "index.html").read_text(encoding="utf-8")


def test_a_link_to_nowhere_stops_the_build(tmp_path: Path) -> None:
    for name in ("docs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("CITATION*"),
        ROOT / "LICENSE",
        ROOT / "mkdocs.yml",
    ):
        shutil.copy(path, tmp_path)
    (tmp_path / "bench").mkdir()
    shutil.copytree(ROOT / "bench" / "results", tmp_path / "bench" / "results")
    with (tmp_path / "docs" / "parity.md").open("a") as page:
        page.write("\n[nowhere](../bench/results/nothing.jsonl)\n")
    built = build(tmp_path, tmp_path / "out")
    assert built.returncode != 0
    assert "nothing.jsonl is not in the site" in built.stderr
