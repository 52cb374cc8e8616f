"""Runs one step's command: ends with its parent, and not at all without a CUDA device.

Started by path with ``python -I launch.py PARENT NEEDS COMMAND…``, so it imports nothing of ours.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
NO_DEVICE = "no CUDA device"


def why_no_device() -> str | None:
    """One line that says why no GPU can be used, or None; asks the driver, makes no context."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"{NO_DEVICE}: the NVIDIA driver cannot be loaded ({error})"
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return f"{NO_DEVICE}: the NVIDIA driver answers with error {code}"
    return None if count.value else f"{NO_DEVICE}: the NVIDIA driver lists none"


def main() -> None:
    parent, needs_device, *command = sys.argv[1:]
    # Whoever kills the check must not leave a kernel behind that keeps the GPU busy.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the check that started this step has ended")
    if needs_device == "gpu" and (reason := why_no_device()) is not None:
        sys.exit(reason)
    try:
        os.execvp(command[0], command)  # noqa: S606 the command replaces this process
    except OSError as error:
        sys.exit(f"{command[0]}: cannot be run ({error.strerror})")


if __name__ == "__main__":
    main()
