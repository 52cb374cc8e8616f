"""The benchmark: latency, memory and accuracy across folds in one table, parity first."""

from hmc_fast.bench.main_job import BenchOptions, run_bench
from hmc_fast.bench.record import BenchRecord, Row, read_record
from hmc_fast.bench.report import write_reports

__all__ = ["BenchOptions", "BenchRecord", "Row", "read_record", "run_bench", "write_reports"]
