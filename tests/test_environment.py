"""The git revision that results are stored with."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from checkouts import head

from hmc_fast import environment

ROOT = Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package's folder in a checkout with one commit; the work goes on in another place."""
    checkout = tmp_path / "checkout"
    (checkout / "hmc_fast").mkdir(parents=True)
    (checkout / "hmc_fast" / "environment.py").touch()
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m."]
    for arguments in (["init", "-q"], ["add", "."], commit):
        subprocess.run(["git", *arguments], cwd=checkout, check=True)
    monkeypatch.setattr(environment, "__file__", str(checkout / "hmc_fast" / "environment.py"))
    monkeypatch.chdir(tmp_path)
    return checkout / "hmc_fast"


def test_a_checkout_tells_its_own_commit(package: Path) -> None:
    assert environment.git_revision() == head(package)


def test_changes_are_told_and_no_lock_is_taken(package: Path) -> None:
    """A lock would outlive a command that is killed meanwhile."""
    checkout, file = package.parent, package / "environment.py"
    index = checkout / ".git" / "index"
    os.utime(file, (0, 0))  # git would write down that it is the same all the same
    before = index.stat().st_ino, index.stat().st_mtime_ns
    assert environment.git_revision() == head(checkout)
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == before
    file.write_text("changed")
    assert environment.git_revision() == f"{head(checkout)}-dirty"


def test_a_wheel_tells_the_commit_of_its_build(package: Path) -> None:
    (package / environment.REVISION_FILE).write_text("0123456789ab-dirty\n")
    assert environment.git_revision() == "0123456789ab-dirty"


def test_the_commit_of_another_project_is_not_taken_for_ours(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = package.parent / "venv" / "hmc_fast"
    monkeypatch.setattr(environment, "__file__", str(installed / "environment.py"))
    monkeypatch.chdir(package)
    assert environment.git_revision() is None


def test_the_widest_vectors_of_the_processor_are_told() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    told = environment.environment()["cpu_instructions"]
    assert ("AVX512-BF16" in told) == ("avx512_bf16" in flags)
    assert told.startswith("AVX512") == ("avx512f" in flags)


@pytest.mark.systems
def test_wheel_and_sdist_hold_the_revision(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", "--depth=1", ROOT.as_uri(), checkout], check=True)
    shutil.copy(ROOT / "setup.py", checkout)
    shutil.copy(ROOT / "pyproject.toml", checkout)
    code = (
        "import sys; from setuptools import build_meta as b; out = sys.argv[1];"
        "b.build_wheel(out); b.build_sdist(out)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=checkout, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    (source,) = tmp_path.glob("*.tar.gz")
    texts = [zipfile.ZipFile(wheel).read("hmc_fast/revision.txt").decode()]
    with tarfile.open(source) as archive:
        (name,) = (name for name in archive.getnames() if name.endswith("revision.txt"))
        member = archive.extractfile(name)
        assert member is not None
        texts.append(member.read().decode())
    assert {text.strip().removesuffix("-dirty") for text in texts} == {head(checkout)}
