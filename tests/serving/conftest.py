"""A real Triton Inference Server, and a repository that it has loaded."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from lively_models import save_lively
from tritonserver import Server

from hmc_fast import create_model
from hmc_fast.export import export_onnx
from hmc_fast.export.serving import ServingOptions, write_model_repository

VARIABLE = "HMC_FAST_TRITONSERVER"
STAND_IN = Path(__file__).parent / "stand_in"
START_S = 120


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model whose attention matters."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("served") / "model.safetensors"
    return save_lively(create_model("hmc_net_resnet18"), path)


@pytest.fixture(scope="session")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    graph = folder / "model.onnx"
    export_onnx(checkpoint, graph)
    write_model_repository(graph, folder / "models", ServingOptions(device="cpu"))
    return folder / "models"


@pytest.fixture(scope="session")
def server(
    checkpoint: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    installed = os.environ.get(VARIABLE)
    if not installed:
        pytest.skip(f"needs Triton: sh scripts/make_tritonserver_env.sh FOLDER, {VARIABLE}=FOLDER")
    home = Path(installed) / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    libraries = Path(sysconfig.get_config_var("LIBDIR"))
    if not (libraries / f"libpython{version}.so.1.0").is_file():
        pytest.skip(f"needs this Python's shared library in {libraries}")
    backends = tmp_path_factory.mktemp("backends")
    shutil.copytree(home / "backends" / "python", backends / "python")
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    (backends / "onnxruntime").symlink_to(STAND_IN)
    http, grpc = _free_port(), _free_port()
    log = (backends / "log").open("w")
    process = subprocess.Popen(
        [
            *(home / "bin" / "tritonserver", "--model-repository", repository),
            *("--backend-directory", backends, "--allow-metrics", "false"),
            *("--http-address", "127.0.0.1", "--http-port", str(http)),
            *("--grpc-address", "127.0.0.1", "--grpc-port", str(grpc)),
        ],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join(path for path in sys.path if path),
            "LD_LIBRARY_PATH": f"{libraries}:{Path(installed) / 'nvidia_pytriton.libs'}",
        },
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _wait(process, http, backends / "log")
        yield Server(
            f"http://127.0.0.1:{http}",
            f"grpc://127.0.0.1:{grpc}",
            process.pid,
            checkpoint,
            repository,
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    ready = f"http://127.0.0.1:{port}/v2/health/ready"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"tritonserver ended: {log.read_text()[-3000:]}")
        try:
            with urlopen(ready, timeout=5) as answer:  # our own server
                if answer.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"tritonserver is not ready: {log.read_text()[-3000:]}")
