"""Films, their labels and their folds."""

from hmc_fast.data.cases import TASKS, Case, Finding, Task, rotated_copies
from hmc_fast.data.dataset import FilmCache, FilmDataset
from hmc_fast.data.film import read_film
from hmc_fast.data.folds import PROTOCOLS, Folds, make_folds, read_folds
from hmc_fast.data.mias import read_mias
from hmc_fast.data.phantom import write_phantoms
from hmc_fast.data.preprocessing import Preprocessing

__all__ = [
    "PROTOCOLS",
    "TASKS",
    "Case",
    "FilmCache",
    "FilmDataset",
    "Finding",
    "Folds",
    "Preprocessing",
    "Task",
    "make_folds",
    "read_film",
    "read_folds",
    "read_mias",
    "rotated_copies",
    "write_phantoms",
]
