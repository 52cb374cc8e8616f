"""A film's results as DICOM files."""

from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from hmc_fast.data.film_image import FilmImage
from hmc_fast.data.pixels import pixel_digest
from hmc_fast.dicom_results.overlay import secondary_capture
from hmc_fast.dicom_results.reading import Reading
from hmc_fast.dicom_results.report import measurement_report
from hmc_fast.dicom_results.series import MANUFACTURER
from hmc_fast.dicom_results.source import read_source
from hmc_fast.errors import UserError
from hmc_fast.explain.methods import ActivationMap
from hmc_fast.files import make_folder, write_atomically

REPORT = "report"


def results_of(
    path: Path, film: FilmImage, reading: Reading, maps: Sequence[ActivationMap]
) -> dict[str, Dataset]:
    """The measurement report, as ``"report"``, and an overlay of each map by its method.

    Args:
        path: the film's DICOM file, whose study the results join.
        film: the film as it was read.
        reading: what the model says of it.
        maps: of the film.

    Raises:
        UserError: the film's header cannot be referred to.
    """
    source, pixels = read_source(path), pixel_digest(film.pixels)
    results = {REPORT: measurement_report(source, pixels, reading)}
    for heat in maps:
        results[heat.method] = secondary_capture(source, pixels, reading, film, heat)
    return results


def check_replaceable(folder: Path, name: str) -> None:
    """Raises :class:`UserError` where ``folder`` holds ``NAME.*.dcm`` that is no result of ours."""
    for path in folder.glob(f"{escape(name)}.*.dcm"):
        try:
            maker = dcmread(path, stop_before_pixels=True).get("Manufacturer")
        except (OSError, InvalidDicomError):
            maker = None
        if maker != MANUFACTURER:
            raise UserError(
                f"{path}: is no result of hmc-fast, and is not overwritten; name another folder"
            )


def write_results(folder: Path, name: str, results: Mapping[str, Dataset]) -> None:
    """Write ``NAME.report.dcm`` and ``NAME.METHOD.dcm`` into ``folder``, each atomically.

    Raises :class:`UserError` where the disk refuses.
    """
    make_folder(folder)
    for suffix, dataset in results.items():
        _write(folder / f"{name}.{suffix}.dcm", dataset)


def _write(path: Path, dataset: Dataset) -> None:
    write_atomically(path, lambda temporary: dataset.save_as(temporary, enforce_file_format=True))
