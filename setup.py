"""Writes the git revision into what is built, so that records made with a wheel know it."""

import subprocess
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
REVISION = Path("hmc_fast") / "revision.txt"


def write_revision(folder: Path) -> None:
    """Write the checkout's commit, ``-dirty`` with changes; what an sdist brings along stays."""
    if not (ROOT / ".git").exists():
        return
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],  # noqa: S607 git is found by PATH
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if described.returncode == 0 and (folder / REVISION.parent).is_dir():
        (folder / REVISION).write_text(described.stdout, encoding="utf-8")


class BuildWithRevision(build_py):
    """An editable installation asks git instead, each time."""

    def run(self) -> None:
        """Build, then add the revision."""
        super().run()
        if not self.editable_mode:
            write_revision(Path(self.build_lib))


class SdistWithRevision(sdist):
    """A wheel is often built from an sdist, where git is not."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> Any:
        """Lay out the files, then add the revision."""
        super().make_release_tree(base_dir, files)
        write_revision(Path(base_dir))


setup(cmdclass={"build_py": BuildWithRevision, "sdist": SdistWithRevision})
