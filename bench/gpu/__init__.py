"""``hmc-fast gpu-check``: everything that only a GPU can prove, in steps of one process each."""
