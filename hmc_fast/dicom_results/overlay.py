"""A map over its film as a Secondary Capture picture, in the film's own geometry."""

import hashlib

import numpy as np
from highdicom.sc import SCImage
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from scipy.ndimage import map_coordinates

from hmc_fast.data.breast import breast_mask
from hmc_fast.data.film_image import FilmImage
from hmc_fast.data.frame import Frame
from hmc_fast.dicom_results.reading import Reading
from hmc_fast.dicom_results.series import PRODUCT, RESEARCH_ONLY, maker, placed
from hmc_fast.dicom_results.source import SourceFilm
from hmc_fast.explain.methods import TITLES, ActivationMap
from hmc_fast.explain.pictures import HEAT_COLOURS, opacity_of

SERIES_NUMBER = 9002
LONGEST_SIDE = 1536
"""Rows or columns of the film in its overlay, at most."""
BANNER_SHARE = 0.035
"""Height of a line of text below the film, as a share of the film's longer side."""
SMALLEST_TEXT = 10
SIDE_NAMES = {"L": "LEFT breast", "R": "RIGHT breast", "": "side not given"}


def overlay_picture(film: FilmImage, heat: ActivationMap) -> NDArray[np.uint8]:
    """RGB ``[h, w, 3]``: the whole film as it was read, neither cropped nor mirrored, and the map.

    The map is shown on the breast alone.
    """
    rows, columns = film.pixels.shape
    step = max(rows, columns) / min(LONGEST_SIDE, max(rows, columns))
    size = (max(1, round(rows / step)), max(1, round(columns / step)))
    grey = np.asarray(
        Image.fromarray(film.pixels).resize(size[::-1], Image.Resampling.BOX), np.float32
    )
    row = (np.arange(size[0]) + 0.5) * rows / size[0] - 0.5
    column = (np.arange(size[1]) + 0.5) * columns / size[1] - 0.5
    breast = breast_mask(film.pixels)[np.ix_(row.round().astype(int), column.round().astype(int))]
    place = np.meshgrid(*_in_image(film.frame, row, column), indexing="ij")
    values = map_coordinates(heat.values, place, order=1, mode="constant")
    opacity = map_coordinates(opacity_of(heat), place, order=1, mode="constant") * breast
    colours = colormaps[HEAT_COLOURS](values)[..., :3]
    mixed = grey[..., None] * (1 - opacity[..., None]) + colours * opacity[..., None]
    return np.asarray((255 * np.clip(mixed, 0, 1)).round(), np.uint8)


def with_banner(picture: NDArray[np.uint8], lines: list[str]) -> NDArray[np.uint8]:
    """The picture ``[h, w, 3]`` with lines of text below it, which cover nothing of the film."""
    rows, columns = picture.shape[:2]
    height = max(SMALLEST_TEXT, round(BANNER_SHARE * max(rows, columns)))
    canvas = Image.new("RGB", (columns, rows + height * len(lines)))
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        size = 0.75 * height
        while size > 1 and draw.textlength(line, ImageFont.load_default(size)) > 0.98 * columns:
            size *= 0.9
        font = ImageFont.load_default(size)
        draw.text((0.01 * columns, rows + number * height), line, "white", font)
    return np.asarray(canvas)


def secondary_capture(
    source: SourceFilm, pixels: str, reading: Reading, film: FilmImage, heat: ActivationMap
) -> Dataset:
    """The overlay as a Secondary Capture image; ``pixels`` is the digest of the film's."""
    title = TITLES[heat.method]
    kind = f"{title} overlay"
    explained = reading.class_names[heat.class_index]
    evidence = f"{title} for {explained}" + (" (nothing to show)" if heat.note else "")
    lines = [
        f"{RESEARCH_ONLY} - no diagnosis - {PRODUCT} {reading.model}",
        f"{SIDE_NAMES[source.side]}: model output for {reading.class_names[-1]} "
        f"{reading.probabilities[-1]:.3f}, decided {reading.predicted}",
        evidence,
    ]
    header = source.header
    capture = SCImage.from_ref_dataset(
        ref_dataset=header,
        pixel_array=with_banner(overlay_picture(film, heat), lines),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        laterality=source.side or None,
        patient_orientation=("A", "F"),
        **placed(
            kind, SERIES_NUMBER, source, pixels, reading, heat.layer, explained, _digest(heat)
        ),
        **maker(reading),
    )
    capture.PatientOrientation = list(source.orientation)
    capture.IssuerOfPatientID = header.IssuerOfPatientID
    capture.StudyDescription = header.StudyDescription
    capture.BodyPartExamined = "BREAST"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "NO"  # it asks for text that tells who the patient is
    capture.DerivationDescription = f"{RESEARCH_ONLY}: {evidence} over the film"
    reference = Dataset()
    reference.ReferencedSOPClassUID = header.SOPClassUID
    reference.ReferencedSOPInstanceUID = header.SOPInstanceUID
    capture.SourceImageSequence = [reference]
    return capture


def _digest(heat: ActivationMap) -> str:
    return hashlib.sha256(heat.values.tobytes()).hexdigest()


def _in_image(
    frame: Frame, rows: NDArray[np.floating], columns: NDArray[np.floating]
) -> tuple[list[float], list[float]]:
    """Rows and columns of the network's image for rows and columns of the film."""
    return (
        [frame.to_image(row, 0)[0] for row in rows.tolist()],
        [frame.to_image(0, column)[1] for column in columns.tolist()],
    )
