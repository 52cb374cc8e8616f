"""Is the artefact the model? Real films through torch, ONNX Runtime, OpenVINO and the engine."""

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hmc_fast.checkpoint import load_model
from hmc_fast.data import TASKS, Film, FilmCache, FilmDataset
from hmc_fast.environment import environment, installed_version
from hmc_fast.errors import UserError
from hmc_fast.evaluation import Predictions, predict_logits
from hmc_fast.evaluation.seen import seen_films
from hmc_fast.export.packages import CannotRunHereError
from hmc_fast.export.runtime import load
from hmc_fast.export.sidecar import Sidecar, check_description, check_file, read_sidecar
from hmc_fast.progress import Progress, no_progress


@dataclass(frozen=True)
class Bounds:
    """How far an artefact may be from the model in fp32.

    Args:
        logit: largest difference of a logit. A decision may flip only where the two logits lie no
            farther apart than this.
        auc: largest difference of the AUC-ROC, beyond what pairs of films explain whose scores lie
            so close that rounding may swap them (see :func:`near_ties`).
    """

    logit: float
    auc: float


BOUNDS = {
    "fp32": Bounds(1e-3, 1e-3),
    "fp16": Bounds(2e-2, 5e-3),
    "bf16": Bounds(1.6e-1, 2e-2),
    "int8": Bounds(5e-1, 2e-2),
    "fp8": Bounds(5e-1, 2e-2),
}
"""bf16 has three bits less than fp16, hence eight times its bound. Those of int8 and fp8 are a
policy, not a rounding analysis: what quantisation costs is for the user to judge."""
AUC_ROUNDING = 1e-6
"""Of a difference of two AUCs, which torchmetrics computes in fp32."""


@dataclass(frozen=True)
class Distance:
    """Logits against a reference's: differences, decisions that flip, and flip beyond the bound.

    A decision flips beyond where the reference's margin for its own is above a logit's bound.
    """

    max_logit_difference: float
    mean_logit_difference: float
    flips: int
    flips_beyond: int

    @classmethod
    def of(
        cls, truth: NDArray[np.float64], found: NDArray[np.float64], bounds: Bounds
    ) -> "Distance":
        """Of logits ``[films, classes]``."""
        difference = np.abs(found - truth)
        decided, redecided = truth.argmax(axis=1), found.argmax(axis=1)
        rows = np.arange(len(truth))
        flipped = decided != redecided
        far = flipped & (truth[rows, decided] - truth[rows, redecided] > bounds.logit)
        return cls(
            float(difference.max()), float(difference.mean()), int(flipped.sum()), int(far.sum())
        )


@dataclass(frozen=True)
class Row:
    """One implementation against the model in torch at fp32.

    ``status`` is ``ok``, ``exceeds``, ``failed`` (it should run here but broke) or ``not run`` (it
    cannot run here); the figures are None where there are none, as of AUC where a class is absent.
    """

    implementation: str
    status: str
    reason: str | None = None
    max_logit_difference: float | None = None
    mean_logit_difference: float | None = None
    flips: int | None = None
    flips_beyond: int | None = None
    auc: float | None = None
    auc_difference: float | None = None
    auc_allowed: float | None = None


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found. ``rows`` begin with the model in torch.

    ``artefact_ran`` says whether the artefact itself ran, not only the graph beside an engine.
    ``films_of_training_patients`` of the films show patients whom the model was trained on: enough
    to compare runtimes with, but their AUC says nothing of new patients.
    """

    artefact: str
    films: int
    patients: int
    bounds: Bounds
    rows: list[Row]
    environment: dict[str, Any]
    created: str
    artefact_ran: bool
    films_of_training_patients: int = 0

    @property
    def passed(self) -> bool:
        """Whether something ran beside torch and nothing that ran is past its bounds."""
        compared = [row.status for row in self.rows[1:] if row.status != "not run"]
        return bool(compared) and all(status == "ok" for status in compared)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


class Check(NamedTuple):
    """One bound and whether it is kept: ``verdict`` is ``PASS``, ``FAIL`` or ``VOID``."""

    verdict: str
    text: str


class Run(NamedTuple):
    """One artefact in one runtime; an engine has its own."""

    label: str
    path: Path
    runtime: str | None = None


def verify(
    artefact: Path,
    films: list[Film],
    *,
    checkpoint: Path | None = None,
    bounds: Bounds | None = None,
    max_films: int | None = None,
    batch_size: int = 8,
    on_progress: Progress = no_progress,
) -> Verification:
    """Compare an artefact with its checkpoint on films.

    Args:
        artefact: an ONNX file or an engine; of an engine, the ONNX file beside it runs as well.
        films: labelled films.
        checkpoint: by default the one that the sidecar names.
        bounds: by default those of the artefact's precision in :data:`BOUNDS`.
        max_films: use so many, spread evenly over ``films``; by default all.
        batch_size: films a call.
        on_progress: told of every batch.

    Raises:
        UserError: the artefact, its sidecar, its graph or the checkpoint is missing, damaged or
            not the one meant; or no film can be used. What cannot run here, or breaks, is a row
            that says why.
    """
    sidecar = read_sidecar(artefact)
    checkpoint = _find_checkpoint(artefact, sidecar, checkpoint)
    model, metadata = load_model(checkpoint, backend="reference")
    check_description(artefact, sidecar, metadata)
    bounds = bounds or BOUNDS[sidecar.numerics]
    graph = artefact
    if sidecar.engine is not None:
        graph = artefact.with_name(sidecar.engine.onnx.name)
        read_sidecar(graph)
        check_file(graph, sidecar.engine.onnx, f"the sidecar of {artefact.name}")
    runs = [Run("ONNX Runtime", graph, "onnxruntime")]
    if installed_version("openvino") is not None:
        runs.append(Run("OpenVINO", graph, "openvino"))
    if sidecar.engine is not None:
        runs.append(Run(f"{sidecar.engine.flavour} engine", artefact))
    chosen, labels = TASKS[sidecar.task].select(films)
    index = _spread(len(chosen), max_films)
    chosen, labels = [chosen[i] for i in index], [labels[i] for i in index]
    cache = FilmCache(sidecar.preprocessing)
    seen = seen_films([metadata], chosen, cache)
    dataset = FilmDataset(chosen, labels, cache)
    total = len(chosen) * (1 + len(runs))

    def predict(label: str, model: Any) -> Predictions:
        logits = predict_logits(
            model,
            dataset,
            device=torch.device("cpu"),
            batch_size=batch_size,
            on_batch=lambda count: on_progress(label, count, total),
        )
        return Predictions.of(chosen, labels, 0, logits, sidecar.class_names)

    truth = predict("torch", model)
    rows = [Row("torch fp32, the reference", "ok", auc=truth.metrics()["auc_roc"])]
    for run in runs:
        try:
            predicted = predict(run.label, load(run.path, runtime=run.runtime))
            rows.append(compare(run.label, truth, predicted, bounds))
        except CannotRunHereError as error:
            rows.append(Row(run.label, "not run", str(error)))
        except (UserError, RuntimeError) as error:
            rows.append(Row(run.label, "failed", " ".join(str(error).split())))
    return Verification(
        artefact.name,
        len(chosen),
        len({film.patient_id for film in chosen}),
        bounds,
        rows,
        environment(),
        datetime.now(UTC).isoformat(timespec="seconds"),
        any(
            row.status != "not run" and run.path == artefact
            for run, row in zip(runs, rows[1:], strict=True)
        ),
        sum(seen.patients),
    )


def compare(label: str, truth: Predictions, predicted: Predictions, bounds: Bounds) -> Row:
    """Logits, decisions and AUC of ``predicted`` against ``truth``, on the same films."""
    distance = Distance.of(truth.logits, predicted.logits, bounds)
    auc, truth_auc = predicted.metrics()["auc_roc"], truth.metrics()["auc_roc"]
    row = Row(label, "ok", **asdict(distance), auc=auc)
    if auc is not None and truth_auc is not None:
        allowed = max(bounds.auc, near_ties(truth, bounds.logit))
        row = replace(row, auc_difference=abs(auc - truth_auc), auc_allowed=allowed)
    excesses = [check.text for check in checks(row, bounds) if check.verdict == "FAIL"]
    return replace(row, status="exceeds", reason="; ".join(excesses)) if excesses else row


def checks(row: Row, bounds: Bounds) -> list[Check]:
    """What was checked of an implementation that ran; none of one that did not."""
    if row.max_logit_difference is None or row.flips_beyond is None:
        return []
    found = [
        _check(
            row.max_logit_difference <= bounds.logit,
            f"a logit differs by {row.max_logit_difference:.2e}, bound {bounds.logit:.2e}",
        ),
        _check(
            not row.flips_beyond,
            f"{row.flips_beyond} decisions flip farther than that from the threshold",
        ),
    ]
    if row.auc_difference is None or row.auc_allowed is None:
        found.append(Check("VOID", "AUC: the films are all of one class; give some of another"))
    else:
        text = f"AUC differs by {row.auc_difference:.4f}, bound {row.auc_allowed:.4f}"
        found.append(_check(row.auc_difference <= row.auc_allowed + AUC_ROUNDING, text))
    return found


def near_ties(truth: Predictions, logit_bound: float) -> float:
    """Share of pairs of different classes that rounding may swap.

    Scores are ranked by logit differences, each of which may move by twice the error of a logit, so
    a pair may swap up to four times that error apart. The error is the bound, but never more than
    that of fp16: a coarser format gets no excuse for the order that it loses. The mean over classes
    where there are more than two.
    """
    error = min(logit_bound, BOUNDS["fp16"].logit)
    classes = truth.logits.shape[1]
    shares = []
    for positive in [1] if classes == 2 else range(classes):
        others = np.delete(truth.logits, positive, axis=1).max(axis=1)
        score = truth.logits[:, positive] - others
        is_positive = truth.labels == positive
        gaps = np.abs(score[is_positive][:, None] - score[~is_positive][None, :])
        shares.append(float((gaps <= 4 * error).mean()))
    return float(np.mean(shares))


def _check(kept: bool, text: str) -> Check:
    return Check("PASS" if kept else "FAIL", text)


def _find_checkpoint(artefact: Path, sidecar: Sidecar, given: Path | None) -> Path:
    path = given or artefact.parent / sidecar.checkpoint.name
    if not path.is_file():
        raise UserError(
            f"{path}: the checkpoint that {artefact.name} was made from is not there; name it with "
            "--checkpoint"
        )
    check_file(path, sidecar.checkpoint, f"the sidecar of {artefact.name}")
    return path


def _spread(available: int, wanted: int | None) -> list[int]:
    count = available if wanted is None else min(wanted, available)
    return [int(i) for i in np.linspace(0, available - 1, count).round()]
