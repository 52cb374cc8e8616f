"""Launch exported kernels through the CUDA driver alone, as any host program would.

This is the check that a manifest tells the truth: what it says is all that is used here.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmc_fast.errors import UserError
from hmc_fast.export.aot import BATCH, AttentionCall, Manifest, ManifestKernel
from hmc_fast.export.packages import CannotRunHereError, need
from hmc_fast.kernels.problem import AttentionProblem
from hmc_fast.kernels.testing import BudgetUse, budget_use, textbook_attention

SHARED_BYTES_WITHOUT_ASKING = 48 * 1024
CHECK_BATCH = 2


def check_kernels(folder: Path, manifest: Manifest) -> list[tuple[str, BudgetUse]]:
    """Launch every kernel for the GPU at hand on random inputs and hold it to the error budget.

    Returns the call's name with the budget of each output. Raises :class:`CannotRunHereError`
    without a GPU, or where no kernel is for its architecture.
    """
    if not torch.cuda.is_available():
        raise CannotRunHereError("checking kernels needs an NVIDIA GPU; torch sees none here")
    major, minor = torch.cuda.get_device_capability()
    kernels = [k for k in manifest.kernels if k.architecture == f"sm_{major}{minor}"]
    if not kernels:
        raise CannotRunHereError(
            f"{folder}: has no kernel for this GPU; export with --target sm_{major}{minor}"
        )
    uses = []
    for kernel in kernels:
        call = _call_of(kernel)
        q, ks, vs = call.tensors(CHECK_BATCH, torch.device("cuda"))
        outs = [q.new_full((*q.shape[:3], v.shape[3]), float("nan")) for v in vs]
        pairs = [t for pair in zip(ks, vs, strict=True) for t in pair]
        launch_kernel(kernel, (folder / kernel.file.name).read_bytes(), [q, *pairs, *outs])
        eager, _, _ = textbook_attention(q, ks, vs, call.scale)
        ks64, vs64 = ([t.double() for t in ts] for ts in (ks, vs))
        truth, _, _ = textbook_attention(q.double(), ks64, vs64, call.scale)
        for i, out in enumerate(outs):
            use = budget_use(f"outs[{i}]", out, eager[i], truth[i])
            uses.append((kernel.call, use))
    return uses


def launch_kernel(kernel: ManifestKernel, cubin: bytes, tensors: Sequence[Tensor]) -> None:
    """Launch ``cubin`` on the current CUDA stream, as its manifest entry says, and wait for it.

    ``tensors`` are the inputs and outputs in the order of the kernel's arguments, contiguous and
    on the current device.

    Raises :class:`UserError` where the driver refuses, such as one older than the cubin.
    """
    (driver,) = need("cuda.bindings.driver", extra="export")
    torch.cuda.current_stream()  # makes torch's context current before the driver is called
    remaining = iter(tensors)
    values: list[int] = []
    types: list[Any] = []
    batch = 0
    for argument in kernel.arguments:
        if argument.kind == "int32":
            assert argument.value is not None
            values.append(argument.value)
            types.append(ctypes.c_int32)
        else:
            tensor = next(remaining)
            assert argument.shape is not None
            assert tensor.is_contiguous()
            assert tuple(tensor.shape[1:]) == argument.shape[1:]
            batch = tensor.shape[0]
            values.append(tensor.data_ptr())
            types.append(ctypes.c_void_p)
    module = _checked(driver, driver.cuModuleLoadData(cubin))
    try:
        _launch(driver, module, kernel, batch, (tuple(values), tuple(types)))
        torch.cuda.synchronize()
    finally:
        _checked(driver, driver.cuModuleUnload(module))


def _launch(
    driver: Any, module: Any, kernel: ManifestKernel, batch: int, parameters: tuple[Any, Any]
) -> None:
    function = _checked(driver, driver.cuModuleGetFunction(module, kernel.entry.encode()))
    if kernel.shared_bytes > SHARED_BYTES_WITHOUT_ASKING:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver, driver.cuFuncSetAttribute(function, attribute, kernel.shared_bytes))
    x, y, z = kernel.grid_per_image
    stream = torch.cuda.current_stream().cuda_stream
    shape = (x * batch, y, z, kernel.threads, 1, 1, kernel.shared_bytes, stream)
    _checked(driver, driver.cuLaunchKernel(function, *shape, parameters, 0))


def _call_of(kernel: ManifestKernel) -> AttentionCall:
    """The attention call, from the arguments that the manifest lists."""
    shapes = {
        a.name: tuple(int(side) for side in a.shape if side != BATCH)
        for a in kernel.arguments
        if a.kind == "input" and a.shape is not None
    }
    dtype = next(a.dtype for a in kernel.arguments if a.dtype is not None)
    queries, heads, d_qk = shapes["q"]
    values = [shape for name, shape in shapes.items() if name.startswith("v")]
    tokens, _, v_head_dims = zip(*values, strict=True)
    problem = AttentionProblem(
        1, queries, heads, tokens, v_head_dims, d_qk, getattr(torch, dtype), name=kernel.call
    )
    return AttentionCall(kernel.call, problem, kernel.scale)


def _checked(driver: Any, result: tuple[Any, ...]) -> Any:
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        raise UserError(f"the CUDA driver refuses the kernel: {error.name}")
    return values[0] if values else None
