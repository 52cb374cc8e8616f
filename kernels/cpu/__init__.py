"""Blocked attention for CPUs, C++ and plain PyTorch: :mod:`hmc_fast.kernels.cpu.operators`."""
