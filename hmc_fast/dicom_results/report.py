"""A film's reading as a structured report by template TID 1500 (DICOM PS3.16)."""

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from hmc_fast import __version__
from hmc_fast.dicom_results.reading import Reading
from hmc_fast.dicom_results.series import (
    MANUFACTURER,
    PRODUCT,
    RESEARCH_ONLY,
    SCHEME,
    maker,
    placed,
    uid_of,
)
from hmc_fast.dicom_results.source import SourceFilm

KIND = "report"
SERIES_NUMBER = 9001
DECIMALS = 6
"""Of a probability; a number in DICOM has 16 characters."""
SIDE_CODES = {"L": codes.SCT.Left, "R": codes.SCT.Right}


def measurement_report(source: SourceFilm, pixels: str, reading: Reading) -> Dataset:
    """A Comprehensive SR: probabilities, model, operating point, side; preliminary, unverified.

    ``pixels`` is the digest of the film's.
    """
    film = source.header
    place = placed(KIND, SERIES_NUMBER, source, pixels, reading)
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=uid_of(place["sop_instance_uid"], "film"), identifier="film as a whole"
        ),
        algorithm_id=AlgorithmIdentification(
            f"{PRODUCT} {reading.model}",
            __version__,
            parameters=_parameters(reading),
            manufacturer=MANUFACTURER,
        ),
        finding_sites=[FindingSite(codes.SCT.Breast, laterality=SIDE_CODES.get(source.side))],
        measurements=_measurements(reading),
        qualitative_evaluations=[
            QualitativeEvaluation(
                _concept("decision", "Class that the model decides for"),
                _concept(f"class-{reading.predicted}", reading.predicted),
            ),
            QualitativeEvaluation(
                _concept("use", "Intended use"), _concept("research", "Research only, no diagnosis")
            ),
        ],
        source_images=[SourceImageForMeasurementGroup(film.SOPClassUID, film.SOPInstanceUID)],
    )
    device = ObserverContext(
        codes.DCM.Device,
        DeviceObserverIdentifyingAttributes(
            uid=uid_of("device", reading.checkpoint),
            name=f"{PRODUCT}, {RESEARCH_ONLY}",
            manufacturer_name=MANUFACTURER,
            model_name=reading.model,
            serial_number=reading.checkpoint[:16],
        ),
    )
    content = MeasurementReport(
        ObservationContext(observer_device_context=device),
        procedure_reported=codes.SCT.Mammography,
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    return ComprehensiveSR(
        evidence=[film],
        content=content[0],
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name=f"{PRODUCT}, private")],
        **place,
        **maker(reading),
    )


def _parameters(reading: Reading) -> list[str]:
    return [
        f"{RESEARCH_ONLY}: not a medical device, no diagnosis",
        f"task {reading.task}",
        f"checkpoint SHA-256 {reading.checkpoint}",
        f"rule {reading.rule}",
        f"decided by {reading.decision.origin}",
    ]


def _measurements(reading: Reading) -> list[Measurement]:
    named = [
        (f"p-{name}", f"Model output for {name}, 0 to 1", probability)
        for name, probability in zip(reading.class_names, reading.probabilities, strict=True)
    ]
    if reading.decision.threshold is not None:
        positive = reading.class_names[-1]
        meaning = f"Operating point: {positive} from this model output on"
        named.append(("threshold", meaning, reading.decision.threshold))
    return [
        Measurement(_concept(value, meaning), round(number, DECIMALS), codes.UCUM.NoUnits)
        for value, meaning, number in named
    ]


def _concept(value: str, meaning: str) -> CodedConcept:
    """A code of our own scheme; its value has at most 16 characters, its meaning 64."""
    return CodedConcept(value[:16], SCHEME, meaning[:64])
