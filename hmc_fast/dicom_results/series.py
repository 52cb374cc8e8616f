"""What all results of hmc-fast have in common: their series, their maker, their UIDs."""

from typing import Any

from pydicom.uid import UID, generate_uid

from hmc_fast import __version__
from hmc_fast.dicom_results.reading import Reading
from hmc_fast.dicom_results.source import SourceFilm

MANUFACTURER = "hmc-fast developers"
PRODUCT = "hmc-fast"
RESEARCH_ONLY = "RESEARCH ONLY"
SCHEME = "99HMCFAST"
"""Private coding scheme: no standard code says that a number is the output of a model."""
UID_ROOT = "1.2.826.0.1.3680043.8.498."
"""pydicom's, under which the digits are a digest."""


def uid_of(*parts: object) -> UID:
    """A UID that the same parts give again, so that an archive takes a result sent twice once."""
    return generate_uid(UID_ROOT, entropy_srcs=[PRODUCT, __version__, *(repr(p) for p in parts)])


def maker(reading: Reading) -> dict[str, Any]:
    """The equipment's attributes, as highdicom takes them."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": PRODUCT,
        "software_versions": __version__,
        "device_serial_number": reading.checkpoint[:16],
    }


def placed(
    kind: str, number: int, source: SourceFilm, pixels: str, reading: Reading, *details: object
) -> dict[str, Any]:
    """Series and instance of a result, as highdicom takes them.

    ``kind`` and ``number`` are the series' own, ``pixels`` is the digest of the film's, and
    ``details`` are what the result depends on besides the reading.
    """
    study, film = source.header.StudyInstanceUID, source.header.SOPInstanceUID
    return {
        "series_instance_uid": uid_of(study, kind, source.side, reading.checkpoint),
        "series_number": number,
        "series_description": f"{RESEARCH_ONLY} {PRODUCT} {kind}",
        "sop_instance_uid": uid_of(film, pixels, kind, reading, *details),
        "instance_number": source.number,
    }
