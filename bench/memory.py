"""Peak memory of inference, each candidate in a process of its own.

Run as ``python -m hmc_fast.bench.memory``; :func:`measure_memory` does that. On the CPU it is the
highest resident size (``VmHWM``) while inferring after a warm-up, on a GPU the highest allocation.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from hmc_fast.bench.candidates import Candidate
from hmc_fast.checkpoint import load_model

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
TIMEOUT_S = 1800


class MemoryProbeError(RuntimeError):
    """The probe process failed; the message is its last line."""


def measure_memory(
    candidate: Candidate, checkpoint: Path, size: int, batch: int, device: torch.device
) -> float:
    """Peak in MiB of a fresh process that infers ``batch`` films of ``size``² from ``checkpoint``.

    Raises :class:`MemoryProbeError` where that process fails, for want of memory for example.
    """
    # -P keeps a source checkout in the working directory from shadowing the installed package.
    command = [sys.executable, "-P", "-m", "hmc_fast.bench.memory", str(checkpoint)]
    command += ["--implementation", candidate.implementation, "--precision", candidate.precision]
    command += ["--size", str(size), "--batch", str(batch), "--device", str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise MemoryProbeError(f"memory probe took longer than {TIMEOUT_S} s") from None
    except OSError as error:
        raise MemoryProbeError(f"memory probe could not start ({error.strerror})") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"killed with code {done.returncode}"])[-1]
        raise MemoryProbeError(f"memory probe failed: {last}")
    return float(done.stdout.strip().splitlines()[-1])


def _inference_peak_mib(
    candidate: Candidate, checkpoint: Path, size: int, batch: int, device: torch.device
) -> float:
    loaded = load_model(checkpoint)
    model = candidate.prepare(loaded.metadata.model, loaded.model.state_dict(), device)
    del loaded
    images = torch.rand(batch, 3, size, size, device=device)
    model(images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        model(images)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) / 2**20
    reset_resident_peak()
    model(images)
    return resident_peak_mib()


def reset_resident_peak() -> None:
    """Start a new ``VmHWM``. Raises ``OSError`` where the system has none."""
    _CLEAR_REFS.write_text(_RESET_PEAK)


def resident_peak_mib() -> float:
    """Highest resident size of this process since :func:`reset_resident_peak`, in MiB."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    raise MemoryProbeError(f"{_STATUS} names no VmHWM: peak memory needs Linux")


def main() -> None:
    """Entry point of the probe process; prints the peak in MiB."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--implementation", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    args = parser.parse_args()
    candidate = Candidate(args.implementation, args.precision)
    print(_inference_peak_mib(candidate, args.checkpoint, args.size, args.batch, args.device))


if __name__ == "__main__":
    main()
