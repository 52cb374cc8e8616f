"""Films, their labels and their folds."""

from hmc_fast.data.dataset import FilmCache, FilmDataset
from hmc_fast.data.film_image import film_image
from hmc_fast.data.films import Film, Finding, rotated_copies
from hmc_fast.data.folds import PROTOCOLS, Folds, make_folds, read_folds
from hmc_fast.data.mias import read_mias
from hmc_fast.data.phantom import write_phantoms
from hmc_fast.data.pixels import read_pixels
from hmc_fast.data.preprocessing import Preprocessing
from hmc_fast.data.table import read_films
from hmc_fast.data.tasks import TASKS, Task

__all__ = [
    "PROTOCOLS",
    "TASKS",
    "Film",
    "FilmCache",
    "FilmDataset",
    "Finding",
    "Folds",
    "Preprocessing",
    "Task",
    "film_image",
    "make_folds",
    "read_films",
    "read_folds",
    "read_mias",
    "read_pixels",
    "rotated_copies",
    "write_phantoms",
]
