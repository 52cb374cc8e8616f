"""Cross-validated studies: their jobs, records, statistics and reports, and what a leak buys."""

from hmc_fast.study.compare import Comparison, compare
from hmc_fast.study.folder import FOLDS_FILE, fold_checkpoints
from hmc_fast.study.plan import plan_study
from hmc_fast.study.record import StudyRecord, read_study, write_study_record
from hmc_fast.study.report import write_study_reports
from hmc_fast.study.run import run_cross_validation
from hmc_fast.study.summary import StudySummary, summarise_study

__all__ = [
    "FOLDS_FILE",
    "Comparison",
    "StudyRecord",
    "StudySummary",
    "compare",
    "fold_checkpoints",
    "plan_study",
    "read_study",
    "run_cross_validation",
    "summarise_study",
    "write_study_record",
    "write_study_reports",
]
