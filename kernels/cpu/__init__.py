"""Blocked attention for CPUs in plain PyTorch: :mod:`hmc_fast.kernels.cpu.operators`."""
