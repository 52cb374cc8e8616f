"""Finished studies: their records, statistics and reports, and what a leaking split buys."""

from hmc_fast.study.compare import Comparison, compare
from hmc_fast.study.record import StudyRecord, read_study, write_study_record
from hmc_fast.study.report import write_study_reports

__all__ = [
    "Comparison",
    "StudyRecord",
    "compare",
    "read_study",
    "write_study_record",
    "write_study_reports",
]
