"""Kernels compiled ahead of time, gated without a GPU, and their tiles tuned on one."""
