"""What a result was made with: versions, device and revision, stored beside every number."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RECORDED_PACKAGES = (
    "hmc-fast",
    "torch",
    "torchvision",
    "triton",
    "lightning",
    "numpy",
    "scikit-learn",
    "pydicom",
    "onnxruntime",
    "openvino",
)
REVISION_FILE = "revision.txt"
"""Beside this file in a wheel, written when it was built."""


def environment() -> dict[str, Any]:
    """JSON-ready facts about this machine and installation."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_instructions": cpu_instructions(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "packages": {name: installed_version(name) for name in RECORDED_PACKAGES},
        "git_revision": git_revision(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def installed_version(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's model name, its architecture where that cannot be read."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def cpu_instructions() -> str:
    """The widest vectors that PyTorch uses here, and the products in bf16 that there are."""
    vectors = torch.backends.cpu.get_cpu_capability()
    facts = torch.cpu.get_capabilities()
    products = [name for name in ("avx512_bf16", "amx_bf16") if facts.get(name)]
    return ", ".join([vectors, *(name.upper().replace("_", "-") for name in products)])


def git_revision() -> str | None:
    """Commit of the code that runs, ``-dirty`` with changes; None where nothing tells it.

    A wheel holds that of its build. A checkout asks git about itself: what lies in the working
    directory may be of another project.
    """
    package = Path(__file__).parent
    try:
        return (package / REVISION_FILE).read_text(encoding="utf-8").strip() or None
    except OSError:
        return _described(package.parent)


def _described(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():
        return None
    try:
        revision = _git(checkout, "rev-parse", "--short=12", "HEAD")
        # git describe --dirty locks the index; whoever is killed meanwhile leaves the lock.
        changed = _git(checkout, "--no-optional-locks", "status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{revision}-dirty" if changed else revision


def _git(checkout: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],  # noqa: S607 git is found by PATH
        capture_output=True,
        text=True,
        timeout=10,
        cwd=checkout,
        check=True,
    ).stdout.strip()
