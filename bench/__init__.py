"""The benchmark: peers side by side, parity first.

A **peer** is an alternative that is timed beside others; a **variant** is one way in which a peer
can do a case. The main job measures latency, memory and accuracy across folds in one table.
"""

from hmc_fast.bench.jobs.folds import FoldsOptions, run_folds
from hmc_fast.bench.record import Measurement, Record, read_record, write_record
from hmc_fast.bench.report.pages import write_reports
from hmc_fast.bench.run import Plan, run_plan

__all__ = [
    "FoldsOptions",
    "Measurement",
    "Plan",
    "Record",
    "read_record",
    "run_folds",
    "run_plan",
    "write_record",
    "write_reports",
]
