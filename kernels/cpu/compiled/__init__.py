"""Both passes in C++, compiled on the machine that they run on.

PyTorch multiplies small blocks of bf16 into fp32, and of fp32 by oneDNN on any processor, for its
own kernels alone: only C++ reaches them. Where that is not possible,
:mod:`hmc_fast.kernels.cpu.forward` and :mod:`hmc_fast.kernels.cpu.backward` compute the same.
"""
