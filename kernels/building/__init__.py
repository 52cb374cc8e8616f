"""The kernels without a run: compiled ahead of time, gated, and their tiles tuned."""
