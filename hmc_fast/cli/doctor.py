"""``hmc-fast doctor``: what this machine can run, what it cannot, why, and what to do."""

from dataclasses import asdict

from hmc_fast.cli import options
from hmc_fast.cli.output import print_json, print_table


def doctor(as_json: options.AsJson = False) -> None:
    """Check Python, torch, GPU, kernels, compilers, decoders and exporters of this machine.

    Example: [bold]hmc-fast doctor --json[/bold]
    """
    from hmc_fast.doctor import examine
    from hmc_fast.environment import environment

    checks = examine()
    if as_json:
        print_json({"environment": environment(), "checks": [asdict(check) for check in checks]})
        return
    print_table(
        ["what", "state", "detail", "what to do"],
        [[c.what, "yes" if c.available else "no", c.detail, c.remedy or ""] for c in checks],
        title="This machine",
    )
