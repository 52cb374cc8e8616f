"""Peak memory of inference, each candidate in a process of its own.

Run as ``python -m hmc_fast.bench.memory``; :func:`measure_memory` does that. On the CPU it is the
highest resident size (``VmHWM``) while inferring after a warm-up, on a GPU the highest allocation.
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from hmc_fast.bench.candidates import Candidate
from hmc_fast.checkpoint import load_model

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Memory:
    """In MiB: the peak while inferring, and the peak of the process from its start."""

    inference_peak_mib: float
    process_peak_mib: float


class MemoryProbeError(RuntimeError):
    """The probe process failed; the message is its last line."""


def measure_memory(
    candidate: Candidate, checkpoint: Path, size: int, batch: int, device: torch.device
) -> Memory:
    """Load ``checkpoint`` in a fresh process, infer ``batch`` films of ``size``², report the peaks.

    Raises :class:`MemoryProbeError` where that process fails, for want of memory for example.
    """
    # -P keeps a source checkout in the working directory from shadowing the installed package.
    command = [sys.executable, "-P", "-m", "hmc_fast.bench.memory", str(checkpoint)]
    command += ["--implementation", candidate.implementation, "--precision", candidate.precision]
    command += ["--size", str(size), "--batch", str(batch), "--device", str(device)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"killed with code {done.returncode}"])[-1]
        raise MemoryProbeError(f"memory probe failed: {last}")
    return Memory(**json.loads(done.stdout.strip().splitlines()[-1]))


def _probe(
    candidate: Candidate, checkpoint: Path, size: int, batch: int, device: torch.device
) -> Memory:
    loaded = load_model(checkpoint)
    model = candidate.prepare(loaded.metadata.model, loaded.model.state_dict(), device)
    del loaded
    images = torch.rand(batch, 3, size, size, device=device)
    model(images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        process_peak = torch.cuda.max_memory_allocated(device) / 2**20
        torch.cuda.reset_peak_memory_stats(device)
        model(images)
        torch.cuda.synchronize(device)
        return Memory(torch.cuda.max_memory_allocated(device) / 2**20, process_peak)
    process_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    _CLEAR_REFS.write_text(_RESET_PEAK)
    model(images)
    return Memory(_resident_peak_mib(), process_peak)


def _resident_peak_mib() -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    raise MemoryProbeError(f"{_STATUS} names no VmHWM: peak memory needs Linux")


def main() -> None:
    """Entry point of the probe process; prints one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--implementation", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    args = parser.parse_args()
    candidate = Candidate(args.implementation, args.precision)
    memory = _probe(candidate, args.checkpoint, args.size, args.batch, args.device)
    print(json.dumps(vars(memory)))


if __name__ == "__main__":
    main()
