"""``hmc-fast bench`` with its subcommands: without one, it is the main job."""

import typer

from hmc_fast.cli.bench import bench
from hmc_fast.cli.bench_compare import compare, report
from hmc_fast.cli.bench_jobs import kernels, model, targets

group = typer.Typer(no_args_is_help=False, rich_markup_mode="rich")
group.callback(invoke_without_command=True)(bench)
for job in (kernels, model, targets, compare, report):
    group.command()(job)
