"""The command line, ``hmc-fast``."""
