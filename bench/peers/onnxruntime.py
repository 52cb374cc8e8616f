"""ONNX Runtime on the exported graph."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from hmc_fast.bench.cases import Case
from hmc_fast.bench.peers.onnx_graph import GRAPH, attend_in_blocks, write_onnx
from hmc_fast.bench.peers.peer import ModuleVariant, Peer
from hmc_fast.environment import installed_version


def _why_not(case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
    if "training" in case.tasks:
        return "ONNX Runtime infers only"
    for package in ("onnxruntime", "onnxscript"):
        if installed_version(package) is None and installed_version(f"{package}-gpu") is None:
            return f"{package} is not installed: pip install 'hmc-fast[export]'"
    if dtype == torch.bfloat16 or (dtype == torch.float16 and device.type == "cpu"):
        return f"ONNX Runtime is timed in fp32, and in fp16 on a GPU, not in {dtype}"
    import onnxruntime

    if (
        device.type == "cuda"
        and "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
    ):
        return "this onnxruntime has no CUDAExecutionProvider: pip install onnxruntime-gpu"
    return None


def _onnx_session(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(model, images, path)
        return _session(path, images)


def _session(path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_mem_pattern = (
        False  # as loaded by the package: it takes memory, and no less time
    )
    # Its idle threads would spin on the cores that the peers beside it are timed on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider = "CUDAExecutionProvider" if images.is_cuda else "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(path, options, providers=[provider])
    return partial(_run_on_gpu if images.is_cuda else _run_on_cpu, session)


def _run_on_cpu(session: Any, images: Tensor) -> Tensor:
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(logits)


def _run_on_gpu(session: Any, images: Tensor) -> Tensor:
    import numpy as np

    element = {torch.float32: np.float32, torch.float16: np.float16}[images.dtype]
    binding = session.io_binding()
    contiguous = images.contiguous()
    binding.bind_input(
        session.get_inputs()[0].name,
        "cuda",
        images.device.index or 0,
        element,
        tuple(images.shape),
        contiguous.data_ptr(),
    )
    binding.bind_output(session.get_outputs()[0].name, "cuda", images.device.index or 0)
    # ONNX Runtime has a stream of its own, so PyTorch's work on the images must be done before.
    torch.cuda.current_stream(images.device).synchronize()
    session.run_with_iobinding(binding)
    return torch.from_numpy(binding.copy_outputs_to_cpu()[0]).to(images.device)


ONNXRUNTIME = Peer(
    "onnxruntime",
    "runtime",
    "#cc79a7",
    "ONNX Runtime on the exported graph",
    models=(ModuleVariant(GRAPH, attend=attend_in_blocks, build=_onnx_session),),
    why_not=_why_not,
    trainable=False,
)
