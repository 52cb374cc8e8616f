"""What mkdocs must know of this repository: pages and records outside ``docs/`` are in the site.

Links are written for a reader of the repository. A link that leaves ``docs/`` leads to a copy in
the site, and one to a file that the site lacks stops ``make docs``.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
COPIED = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "LICENSE": "LICENSE.txt",
    "CITATION.cff": "CITATION.cff",
}
RECORDS = "bench/results"
# Docstrings name other names as Sphinx does; the site shows the name alone.
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(<code>)~?")
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and records that lie outside ``docs/``."""
    copied = dict(COPIED)
    for path in sorted((ROOT / RECORDS).rglob("*")):
        if path.is_file():
            name = path.relative_to(ROOT).as_posix()
            copied[name] = name
    for name, site_name in copied.items():
        files.append(File.generated(config, site_name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turn links between files of the repository into links between files of the site."""
    here = page.file.src_uri
    homes = {site: name for name, site in COPIED.items()}
    source = here if here.startswith(RECORDS) else homes.get(here, f"docs/{here}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        site_name = COPIED.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(site_name) is None:
            raise PluginError(f"{source}: {match[1]} is not in the site")
        return posixpath.relpath(site_name, posixpath.dirname(here) or ".")

    return LINK.sub(moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Take the roles of docstrings out of the page."""
    return ROLE.sub(r"\1", html)
