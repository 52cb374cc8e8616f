"""Shared fixtures, and a closing summary in which no skip can be overlooked."""

import os
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hmc_fast.cli.app import run
from hmc_fast.data import Film, read_mias, write_phantoms
from hmc_fast.kernels.capability import interpreting
from hmc_fast.training import TrainingConfig

DATA_VARIABLE = "HMC_FAST_TEST_DATA"


def _missing(marker: str) -> str | None:
    """Why tests with this marker cannot run here, or None."""
    if marker == "gpu" and not torch.cuda.is_available():
        return "needs an NVIDIA GPU"
    if marker == "tensorrt" and find_spec("tensorrt") is None:
        return "needs the full TensorRT"
    if marker == "interpreter" and not interpreting():
        return "needs TRITON_INTERPRET=1 and a process of its own, as make test starts"
    if marker == "real_data" and not os.environ.get(DATA_VARIABLE):
        return f"needs real films: set {DATA_VARIABLE}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers():
        reason = _missing(marker.name)
        if reason is not None:
            pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    terminalreporter.section("skipped tests are no passes")
    if not skipped:
        terminalreporter.write_line("none skipped")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")
    for test, count in Counter(report.nodeid.split("[")[0] for report in skipped).items():
        terminalreporter.write_line(f"  {test}" + (f" ({count} times)" if count > 1 else ""))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real films, DICOM files and weights; for tests marked ``real_data``."""
    return Path(os.environ[DATA_VARIABLE]).resolve()


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 phantom patients, 64² pixels."""
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, patients=18, size=64, seed=1)
    return folder


@pytest.fixture(scope="session")
def phantoms(phantom_folder: Path) -> list[Film]:
    return read_mias(phantom_folder)


@pytest.fixture
def config() -> TrainingConfig:
    """A quick training."""
    return TrainingConfig(size=32, epochs=1, batch_size=18, learning_rate=1e-3)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must fail with exit code 1 and one last line; returns that line."""

    def check(*arguments: object) -> str:
        code = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert code == 1, printed
        lines = printed.err.strip().splitlines()
        assert "Traceback" not in printed.err
        assert lines[-1].startswith("hmc-fast: "), printed.err
        return lines[-1]

    return check


@pytest.fixture(autouse=True)
def _no_backend_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HMC_FAST_BACKEND", raising=False)
