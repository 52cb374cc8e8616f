"""``python -m hmc_fast``: the command line, for a Python whose scripts are not on the path."""

from hmc_fast.cli.app import main

main()
