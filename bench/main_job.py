"""The main job: train across folds, then measure every candidate on the same checkpoints."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hmc_fast.bench.candidates import DEFAULT_PRECISIONS, IMPLEMENTATIONS, Candidate, PreparedModel
from hmc_fast.bench.measure import Timing, time_interleaved
from hmc_fast.bench.memory import MemoryProbeError, measure_memory
from hmc_fast.bench.parity import PARITY_FILMS, PARITY_PIXELS, LogitTruth
from hmc_fast.bench.record import BenchRecord, Row
from hmc_fast.checkpoint import LoadedModel, load_model
from hmc_fast.data import TASKS, Film, FilmCache, FilmDataset, Preprocessing, read_folds
from hmc_fast.devices import default_device, precision_dtype
from hmc_fast.environment import environment
from hmc_fast.errors import UserError
from hmc_fast.evaluation import Predictions, mean_and_std, pool, predict_logits
from hmc_fast.kernels.testing import BudgetUse
from hmc_fast.models import FilmModel, build_model, model_entry
from hmc_fast.progress import Progress
from hmc_fast.study import FOLDS_FILE, fold_checkpoints, run_cross_validation
from hmc_fast.training import TrainingConfig

LATENCY_ROUNDS = 20
THROUGHPUT_ROUNDS = 5
TIMED_INPUTS = 4
LARGEST_CPU_BATCH_SIZE = 512
"""Above this image size a CPU takes minutes a batch, so throughput is measured on GPUs only."""


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Args:
        model: name of the model.
        training: how the folds are trained; its size is the main size of the table.
        folds: number of folds.
        extra_sizes: further image sizes, for speed and memory only.
        implementations: of :data:`IMPLEMENTATIONS`.
        precisions: None for the device's usual ones.
        throughput_batch: films a call when measuring throughput.
        seconds: least time spent on each interleaved measurement.
    """

    model: str
    training: TrainingConfig
    folds: int = 5
    extra_sizes: tuple[int, ...] = ()
    implementations: tuple[str, ...] = tuple(IMPLEMENTATIONS)
    precisions: tuple[str, ...] | None = None
    throughput_batch: int = 8
    seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in self.implementations:
            if name not in IMPLEMENTATIONS:
                raise UserError(
                    f"unknown implementation {name!r}; choose of {', '.join(IMPLEMENTATIONS)}"
                )
        for precision in self.precisions or ():
            precision_dtype(precision)
        if self.extra_sizes and model_entry(self.model).fixed_size:
            raise UserError(
                f"{self.model} classifies images of one size only; leave --also-size out and run "
                "the benchmark once per size"
            )
        for size in self.extra_sizes:
            Preprocessing.square(size)

    def to_json(self) -> dict[str, Any]:
        weights = self.training.weights
        training = {**self.training.to_json(), "weights": weights and Path(weights).name}
        return {**vars(self), "training": training}


@dataclass
class _Fold:
    """A fold's parameters and held-out films."""

    state: dict[str, Tensor]
    cases: list[Film]
    labels: list[int]


def run_bench(
    options: BenchOptions,
    cases: list[Film],
    data: dict[str, Any],
    out: Path,
    *,
    on_training: Progress = lambda label, done, total: None,
    on_stage: Callable[[str], object] = lambda stage: None,
) -> BenchRecord:
    """Cross-validate into ``out/study`` (resumed if there), then measure; returns the record.

    ``data`` describes the films for the record. ``on_stage`` is told what is being measured.

    Raises :class:`UserError` as the training does. A candidate that cannot run, breaks or fails
    parity is a row with its reason, and the rest goes on.
    """
    study = out / "study"
    run_cross_validation(
        [options.model],
        options.training,
        cases,
        study,
        fold_count=options.folds,
        on_progress=on_training,
    )
    device = default_device()
    first, folds = _load_folds(study, options, cases)
    checkpoint = fold_checkpoints(study, options.model)[0]
    rows: list[Row] = []
    share: dict[str, float] = {}
    fold_metrics: list[dict[str, float | None]] = []
    for size in (options.training.size, *options.extra_sizes):
        bench = _SizeBench(options, first, folds, checkpoint, size, device, on_stage)
        rows += bench.run()
        fold_metrics = fold_metrics or bench.reference_metrics
        share[str(size)] = _attention_share(first.model, size)
    return BenchRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        data=data,
        options=options.to_json(),
        environment=environment(),
        protocol=read_folds(study / FOLDS_FILE).protocol,
        attention_share=share,
        fold_metrics=fold_metrics,
        rows=rows,
    )


class _SizeBench:
    """All candidates at one image size."""

    def __init__(
        self,
        options: BenchOptions,
        first: LoadedModel,
        folds: list[_Fold],
        checkpoint: Path,
        size: int,
        device: torch.device,
        on_stage: Callable[[str], object],
    ) -> None:
        self.options = options
        self.config = first.metadata.model
        self.class_names = first.metadata.class_names
        self.folds = folds
        self.checkpoint = checkpoint
        self.size = size
        self.device = device
        self.on_stage = on_stage
        self.with_accuracy = size == options.training.size
        self.cache = FilmCache(replace(first.metadata.preprocessing, height=size, width=size))
        self.reference_metrics: list[dict[str, float | None]] = []
        self.reference: Predictions | None = None

    def run(self) -> list[Row]:
        precisions = self.options.precisions or DEFAULT_PRECISIONS[self.device.type]
        candidates = [
            Candidate(implementation, precision)
            for implementation in self.options.implementations
            for precision in precisions
        ]
        model = build_model(self.config, "reference")
        rows = {c: Row(c.implementation, c.precision, self.size, "ok") for c in candidates}
        self.on_stage(f"{self.size}²: fp64 truth for parity")
        truth = self._truth(list(precisions))
        ready: dict[Candidate, PreparedModel] = {}
        for candidate in candidates:
            reason = candidate.why_unavailable(model, self.device)
            if reason is not None:
                rows[candidate] = replace(rows[candidate], status="unavailable", reason=reason)
                continue
            self.on_stage(f"{self.size}²: {candidate.name}, parity")
            try:
                prepared = candidate.prepare(self.config, self.folds[0].state, self.device)
                parity = truth.check(prepared, self._batch_sizes())
            except Exception as error:  # whatever a backend raises belongs in its row
                rows[candidate] = _failed(rows[candidate], error)
                continue
            rows[candidate] = _with_parity(rows[candidate], parity)
            if parity.within:
                ready[candidate] = prepared
        if self.with_accuracy:
            self.reference = self._out_of_fold(
                Candidate("eager", "fp32").prepare(self.config, self.folds[0].state, self.device)
            )
            self.reference_metrics = self._fold_metrics(self.reference)
            for candidate, prepared in ready.items():
                self.on_stage(f"{self.size}²: {candidate.name}, accuracy across folds")
                try:
                    rows[candidate] = self._with_accuracy(rows[candidate], prepared)
                except Exception as error:  # not finite, or out of memory
                    rows[candidate] = _failed(rows[candidate], error)
            ready = {c: prepared for c, prepared in ready.items() if rows[c].status == "ok"}
        for candidate, timing in self._time(ready, 1, LATENCY_ROUNDS, "latency").items():
            rows[candidate] = replace(
                rows[candidate],
                latency_p50_ms=timing.percentile(50),
                latency_p95_ms=timing.percentile(95),
                latency_samples=len(timing.samples_ms),
            )
        batch = self.options.throughput_batch
        batched = {} if self._batches_take_minutes() else ready
        for candidate, timing in self._time(
            batched, batch, THROUGHPUT_ROUNDS, "throughput"
        ).items():
            rows[candidate] = replace(
                rows[candidate],
                throughput_films_per_s=batch / timing.percentile(50) * 1e3,
                throughput_batch=batch,
            )
        for candidate in ready:
            self.on_stage(f"{self.size}²: {candidate.name}, memory")
            rows[candidate] = self._with_memory(rows[candidate], candidate)
        return list(rows.values())

    def _batch_sizes(self) -> list[int]:
        return [1] if self._batches_take_minutes() else [1, self.options.throughput_batch]

    def _batches_take_minutes(self) -> bool:
        return self.device.type == "cpu" and self.size > LARGEST_CPU_BATCH_SIZE

    def _truth(self, precisions: list[str]) -> LogitTruth:
        films = max(2, min(PARITY_FILMS, PARITY_PIXELS // self.size**2))
        return LogitTruth.compute(self.config, self.folds[0].state, self._images(films), precisions)

    def _images(self, count: int) -> Tensor:
        """``count`` held-out films of the first fold (repeated if it has fewer), on the device."""
        fold = self.folds[0]
        dataset = FilmDataset(fold.cases, fold.labels, self.cache)
        return torch.stack([dataset[i % len(dataset)][0] for i in range(count)]).to(self.device)

    def _time(
        self, ready: dict[Candidate, PreparedModel], batch: int, rounds: int, what: str
    ) -> dict[Candidate, Timing]:
        if not ready:
            return {}
        self.on_stage(f"{self.size}²: {what} of {len(ready)} candidates, interleaved")
        inputs = list(torch.split(self._images(TIMED_INPUTS * batch), batch))
        by_name = {candidate.name: candidate for candidate in ready}
        timings = time_interleaved(
            {candidate.name: prepared for candidate, prepared in ready.items()},
            inputs,
            min_rounds=max(3, rounds // 4) if self._batches_take_minutes() else rounds,
            seconds=self.options.seconds,
        )
        return {by_name[name]: timing for name, timing in timings.items()}

    def _out_of_fold(self, prepared: PreparedModel) -> Predictions:
        parts = []
        for number, fold in enumerate(self.folds):
            prepared.load(fold.state)
            logits = _fixed_batch_logits(prepared, fold, self.cache, self.options.throughput_batch)
            parts.append(Predictions.of(fold.cases, fold.labels, number, logits, self.class_names))
        prepared.load(self.folds[0].state)
        return pool(parts)

    def _fold_metrics(self, predictions: Predictions) -> list[dict[str, float | None]]:
        return [part.metrics() for part in predictions.by_fold()]

    def _with_accuracy(self, row: Row, prepared: PreparedModel) -> Row:
        assert self.reference is not None
        predictions = self._out_of_fold(prepared)
        summary = mean_and_std(self._fold_metrics(predictions))["accuracy"]
        auc, reference_auc = predictions.auc_interval(), self.reference.auc_interval()
        return replace(
            row,
            accuracy_mean=summary[0] if summary else None,
            accuracy_std=summary[1] if summary else None,
            auc=auc.value,
            auc_low=auc.low,
            auc_high=auc.high,
            max_logit_difference=float(np.abs(predictions.logits - self.reference.logits).max()),
            flipped_decisions=int((predictions.decisions != self.reference.decisions).sum()),
            auc_difference=(
                auc.value - reference_auc.value
                if auc.value is not None and reference_auc.value is not None
                else None
            ),
        )

    def _with_memory(self, row: Row, candidate: Candidate) -> Row:
        try:
            peak_mib = measure_memory(candidate, self.checkpoint, self.size, 1, self.device)
        except MemoryProbeError as error:
            return replace(row, reason=str(error))
        return replace(row, inference_peak_mib=peak_mib)


def _load_folds(
    study: Path, options: BenchOptions, cases: list[Film]
) -> tuple[LoadedModel, list[_Fold]]:
    cases, labels = TASKS[options.training.task].select(cases)
    folds = read_folds(study / FOLDS_FILE)
    loaded = [
        load_model(path, expected_model=options.model, backend="reference")
        for path in fold_checkpoints(study, options.model)
    ]
    parts = []
    for number, model in enumerate(loaded):
        _, held_out = folds.split(cases, number)
        parts.append(
            _Fold(
                model.model.state_dict(),
                [cases[i] for i in held_out],
                [labels[i] for i in held_out],
            )
        )
    return loaded[0], parts


def _fixed_batch_logits(
    prepared: PreparedModel, fold: _Fold, cache: FilmCache, batch: int
) -> NDArray[np.float32]:
    """Logits in batches of one size (the last is filled up), so that nothing is compiled anew."""
    padding = math.ceil(len(fold.cases) / batch) * batch - len(fold.cases)
    dataset = FilmDataset(
        fold.cases + fold.cases[:1] * padding, fold.labels + fold.labels[:1] * padding, cache
    )
    logits = predict_logits(
        prepared, dataset, device=prepared.device, precision=prepared.precision, batch_size=batch
    )
    return logits[: len(fold.cases)]


def _with_parity(row: Row, parity: BudgetUse) -> Row:
    row = replace(row, parity_max_error=parity.max_error, parity_allowed=parity.max_allowed)
    if parity.within:
        return row
    return replace(row, status="parity failed", reason=str(parity))


def _failed(row: Row, error: Exception) -> Row:
    summary = " ".join(str(error).split())[:300]
    return replace(row, status="error", reason=f"{type(error).__name__}: {summary}")


def _attention_share(model: FilmModel, size: int) -> float:
    """Attention's share of the floating-point operations of one film, by counting."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        build_model(model.config, "reference").eval()(torch.empty(1, 3, size, size))
    counts = counter.get_flop_counts()["Global"]
    attention = sum(flops for op, flops in counts.items() if "hmc_fast" in str(op))
    return float(attention / sum(counts.values()))
