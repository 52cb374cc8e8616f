"""Hooks for profilers: NVTX ranges, a PyTorch trace, the command line of Nsight Compute."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from hmc_fast.files import write_atomically

_FORWARD = "_forward_kernel|_combine_splits_kernel|_join_sources_kernel"
_BACKWARD = "_delta_kernel|_backward_q_kernel|_backward_kv_kernel"
KERNEL_FILTERS = {
    "forward": f"regex:{_FORWARD}",
    "backward": f"regex:{_BACKWARD}",
    "both": f"regex:{_FORWARD}|{_BACKWARD}",
}
"""Names of our kernels by pass, for ``ncu --kernel-name``."""
SKIPPED_LAUNCHES = 4
"""Compilation, parity and warm-up come first."""
PROFILED_LAUNCHES = 3


def annotated(name: str) -> Callable[[], AbstractContextManager[object]]:
    """A factory of contexts that mark a call for profilers: an NVTX range where there is a GPU."""
    if not torch.cuda.is_available():
        return nullcontext
    return lambda: torch.cuda.nvtx.range(name)


def write_trace(call: Callable[[], object], name: str, path: Path, device: torch.device) -> None:
    """Trace one call, after one of warm-up, as a Chrome trace (for Perfetto)."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    call()
    with profile(activities=activities, record_shapes=True) as recorded, record_function(name):
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    write_atomically(path, lambda temporary: recorded.export_chrome_trace(str(temporary)))


def ncu_command(
    case: str, task: str, precision: str, program: Sequence[str], report: Path
) -> list[str]:
    """The words of the Nsight Compute command that reads our kernels' hardware counters in a case.

    ``program`` starts ``hmc-fast``; what it writes lands beside ``report``. Clocks are left as they
    are: locking them needs privileges, and other users see it.
    """
    bench = [*program, "bench", "kernels", "--case", case, "--peer", "triton"]
    bench += ["--precision", precision, "--pass", task, "--no-graphs", "--seconds", "0.1"]
    bench += ["--out", str(report.parent / f"{report.name}-bench")]
    counters = ["ncu", "--set", "full", "--clock-control", "none"]
    counters += ["--kernel-name", KERNEL_FILTERS[task]]
    counters += ["--launch-skip", str(SKIPPED_LAUNCHES), "--launch-count", str(PROFILED_LAUNCHES)]
    counters += ["--export", str(report), "--force-overwrite"]
    return [*counters, *bench]
