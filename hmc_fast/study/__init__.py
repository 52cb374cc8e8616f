"""Cross-validated studies: their jobs, records, statistics and reports, and what a leak buys."""

from hmc_fast.study.compare import Comparison, compare
from hmc_fast.study.folder import FOLDS_FILE, fold_checkpoints
from hmc_fast.study.lesion_figures import lesion_figures, lesion_table
from hmc_fast.study.lesion_record import LesionSettings, read_lesion_record
from hmc_fast.study.lesion_run import run_lesion_study
from hmc_fast.study.plan import plan_study
from hmc_fast.study.record import StudyRecord, read_study, write_study_record
from hmc_fast.study.report import write_study_reports
from hmc_fast.study.run import run_cross_validation
from hmc_fast.study.summary import StudySummary, summarise_study

__all__ = [
    "FOLDS_FILE",
    "Comparison",
    "LesionSettings",
    "StudyRecord",
    "StudySummary",
    "compare",
    "fold_checkpoints",
    "lesion_figures",
    "lesion_table",
    "plan_study",
    "read_lesion_record",
    "read_study",
    "run_cross_validation",
    "run_lesion_study",
    "summarise_study",
    "write_study_record",
    "write_study_reports",
]
