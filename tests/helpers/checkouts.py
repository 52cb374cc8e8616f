"""Facts of a git checkout."""

import subprocess
from pathlib import Path


def head(checkout: Path) -> str:
    """The commit that git tells of a checkout."""
    done = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=checkout,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()
