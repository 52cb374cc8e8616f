"""The main job: train across folds, then measure every peer on the same checkpoints."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hmc_fast.bench.cases import Case, Task
from hmc_fast.bench.failures import describe
from hmc_fast.bench.jobs.fold_model import FoldModel
from hmc_fast.bench.measuring.clock import TimedCall, clock_for
from hmc_fast.bench.measuring.load import heavier
from hmc_fast.bench.measuring.memory import child_peak_mib
from hmc_fast.bench.parity import LogitTruth, budget_units, open_gates, parity_films
from hmc_fast.bench.peers import peer as peer_of
from hmc_fast.bench.peers.eager import EAGER
from hmc_fast.bench.peers.peer import ModuleVariant, Peer
from hmc_fast.bench.record import FoldScores, Measurement, Record, Study
from hmc_fast.bench.run import (
    CaseRun,
    Stage,
    finish_record,
    run_cases,
    sample_quietly,
    set_aside,
    start_record,
)
from hmc_fast.bench.trials import INPUT_SETS, Trial
from hmc_fast.checkpoint import LoadedModel, load_model
from hmc_fast.data import TASKS, Film, FilmCache, FilmDataset, Preprocessing, read_folds
from hmc_fast.devices import default_device, precision_dtype
from hmc_fast.errors import UserError
from hmc_fast.evaluation import Predictions, mean_and_std, pool, predict_logits
from hmc_fast.models import FilmModel, build_model, model_entry
from hmc_fast.progress import Progress, no_progress
from hmc_fast.study import FOLDS_FILE, fold_checkpoints, run_cross_validation
from hmc_fast.training import TrainingConfig

DEFAULT_PEERS = (
    "eager",
    "compiled",
    "cpu",
    "cpu_prepared",
    "triton",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
)
DEFAULT_PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}
REFERENCE = (EAGER, EAGER.models[0], "fp32")
"""What accuracy, decisions and logits of every other row are held against."""
LARGEST_CPU_BATCH_SIZE = 512
"""Above this image size a CPU takes minutes a batch, so throughput is measured on GPUs only."""


@dataclass(frozen=True)
class FoldsOptions:
    """What to measure.

    Args:
        model: name of the model.
        training: how the folds are trained.
        folds: number of folds.
        extra_sizes: further image sizes, for speed and memory only.
        peers: names of peers that run models.
        precisions: None for the device's usual ones.
        throughput_batch: films a call when measuring throughput.
        seconds: least time spent on each interleaved measurement.
    """

    model: str
    training: TrainingConfig
    folds: int = 5
    extra_sizes: tuple[int, ...] = ()
    peers: tuple[str, ...] = DEFAULT_PEERS
    precisions: tuple[str, ...] | None = None
    throughput_batch: int = 8
    seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in self.peers:
            if not peer_of(name).models:
                raise UserError(f"peer {name} times operators alone; see bench kernels")
        for precision in self.precisions or ():
            precision_dtype(precision)
        if self.extra_sizes and model_entry(self.model).fixed_size:
            raise UserError(
                f"{self.model} classifies images of one size only; leave --also-size out and run "
                "the benchmark once per size"
            )
        for size in self.extra_sizes:
            self.training.preprocessing(self.model).at_height(size)

    @property
    def size(self) -> int:
        """Rows of the images that the folds are trained on, the main size of the table."""
        return self.training.preprocessing(self.model).height

    def to_json(self) -> dict[str, Any]:
        training = {**self.training.to_json(), "weights": self.training.weights_label()}
        return {**vars(self), "training": training}


@dataclass
class _Fold:
    """A fold's parameters and held-out films."""

    state: dict[str, Tensor]
    films: list[Film]
    labels: list[int]


class FoldTrials:
    """Trials of one precision on the held-out films of trained folds."""

    def __init__(self, job: "_SizeJob", precision: str) -> None:
        self.job = job
        self.precision = precision
        self.calls: dict[str, FoldModel] = {}
        images = job.images(parity_films(job.size))
        self.opened = open_gates(job.folds[0].state)
        exact = build_model(job.config, "reference")
        exact.load_state_dict(self.opened)
        exact.to(job.device, torch.float64).eval()
        eager = job.fold_model(EAGER, EAGER.models[0], precision)
        eager.load(self.opened)
        self.truth = LogitTruth(exact, eager, images)
        self.batches = list(torch.split(job.images(INPUT_SETS), 1))

    def variants(self, peer: Peer) -> tuple[ModuleVariant, ...]:
        return peer.models

    def make(self, peer: Peer, variant: ModuleVariant, task: Task) -> Trial:
        """Parity with open gates at every batch size that is timed, then accuracy across folds."""
        call = self.job.fold_model(peer, variant, self.precision)
        call.load(self.opened)
        # The largest first: an engine that cannot run tells of the batch that it was built for.
        uses = [self.truth.check(call, batch) for batch in reversed(self.job.batch_sizes)]
        call.load(self.job.folds[0].state)
        use = max(uses, key=lambda use: (not use.within, budget_units(use)))
        fields = {}
        if use.within and self.job.with_accuracy:
            self.job.on_stage(f"{peer.name} {self.precision}: accuracy across folds")
            fields["scores"] = self.job.scores(call)
        self.calls[peer.name] = call
        return Trial(use, TimedCall(call, self.batches.__getitem__), fields=fields)

    def peak_mib(self, peer: Peer, trial: Trial) -> float | None:
        """Of a process of its own, with everything that it holds."""
        arguments = [str(self.job.checkpoint), "--peer", peer.name, "--precision", self.precision]
        arguments += ["--variant", self.calls[peer.name].variant.name]
        arguments += ["--size", str(self.job.size), "--device", str(self.job.device)]
        return child_peak_mib("hmc_fast.bench.jobs.fold_model", arguments)


class _SizeJob:
    """All peers at one image size."""

    def __init__(
        self,
        options: FoldsOptions,
        first: LoadedModel,
        folds: list[_Fold],
        checkpoint: Path,
        size: int,
        on_stage: Stage,
    ) -> None:
        self.options = options
        self.config = first.metadata.model
        self.class_names = first.metadata.class_names
        self.bilateral = first.metadata.bilateral
        self.folds = folds
        self.checkpoint = checkpoint
        self.size = size
        self.device = default_device()
        self.on_stage = on_stage
        self.with_accuracy = size == options.size
        self.cache = FilmCache(first.metadata.preprocessing.at_height(size))
        minutes_a_batch = self.device.type == "cpu" and size > LARGEST_CPU_BATCH_SIZE
        self.batch_sizes = (1,) if minutes_a_batch else (1, options.throughput_batch)
        self.reference: Predictions | None = None

    def run(self) -> list[Measurement]:
        """A row for every peer and precision."""
        if self.with_accuracy:
            self.reference = self._out_of_fold(self.fold_model(*REFERENCE))
        trials: dict[str, FoldTrials] = {}

        def make_trials(precision: str) -> FoldTrials:
            trials[precision] = FoldTrials(self, precision)
            return trials[precision]

        run = CaseRun(
            Case(self.options.model, "model", self.size, 1, ("inference",)),
            self.options.precisions or DEFAULT_PRECISIONS[self.device.type],
            tuple(peer_of(name) for name in self.options.peers),
            make_trials,
            self.device,
            clock_for(self.device),
            self.options.seconds,
            graphs=False,
            on_stage=self.on_stage,
        )
        (rows,) = run_cases(iter([run]), float("inf"))
        if len(self.batch_sizes) == 1:
            return [replace(row, throughput_per_s=None, throughput_batch=None) for row in rows]
        return self._with_throughput(rows, trials)

    def fold_model(self, peer: Peer, variant: ModuleVariant, precision: str) -> FoldModel:
        state = self.folds[0].state
        return FoldModel(peer, variant, self.config, state, self.device, precision)

    def images(self, count: int) -> Tensor:
        """``count`` held-out films of the first fold (repeated if it has fewer), on the device."""
        fold = self.folds[0]
        dataset = FilmDataset(fold.films, fold.labels, self.cache)
        return torch.stack([dataset[i % len(dataset)][0] for i in range(count)]).to(self.device)

    def _with_throughput(
        self, rows: list[Measurement], trials: Mapping[str, FoldTrials]
    ) -> list[Measurement]:
        """Films a second in batches, in place of those of single films."""
        batch = self.options.throughput_batch
        inputs = list(torch.split(self.images(INPUT_SETS * batch), batch))
        calls = {
            row.label: TimedCall(trials[row.precision].calls[row.peer], inputs.__getitem__)
            for row in rows
            if row.status == "ok"
        }
        self.on_stage(
            f"{self.options.model}@{self.size}: throughput of {len(calls)} peers, side by side"
        )
        results, load = sample_quietly(
            calls, self.device, clock_for(self.device), self.options.seconds
        )
        filled = []
        for row in rows:
            if row.label in results.timings:
                rate = batch / results.timings[row.label].percentile(50) * 1e3
                row = replace(row, throughput_per_s=rate, throughput_batch=batch)
                row = replace(row, load=heavier(row.load, load))
            elif row.label in results.failures:
                reason = f"in batches of {batch}: {describe(results.failures[row.label])}"
                row = replace(row, throughput_per_s=None, throughput_batch=None, reason=reason)
            filled.append(row)
        return filled

    def _out_of_fold(self, call: FoldModel) -> Predictions:
        parts = []
        for number, fold in enumerate(self.folds):
            call.load(fold.state)
            logits = _fixed_batch_logits(call, fold, self.cache, self.options.throughput_batch)
            parts.append(
                Predictions.of(
                    fold.films,
                    fold.labels,
                    number,
                    logits,
                    self.class_names,
                    bilateral=self.bilateral,
                )
            )
        call.load(self.folds[0].state)
        return pool(parts)

    def fold_metrics(self) -> list[dict[str, float | None]]:
        """Metrics of the eager fp32 reference, fold by fold."""
        assert self.reference is not None
        return [part.metrics() for part in self.reference.by_fold()]

    def scores(self, call: FoldModel) -> FoldScores:
        """Out-of-fold figures of ``call``, and their distance from the reference's."""
        assert self.reference is not None
        is_reference = (call.peer, call.variant, call.precision) == REFERENCE
        predictions = self.reference if is_reference else self._out_of_fold(call)
        metrics = [part.metrics() for part in predictions.by_fold()]
        summary = mean_and_std(metrics)["accuracy"]
        auc, reference_auc = predictions.auc_interval(), self.reference.auc_interval()
        known = auc.value is not None and reference_auc.value is not None
        return FoldScores(
            accuracy_mean=summary[0] if summary else None,
            accuracy_std=summary[1] if summary else None,
            auc=auc.value,
            auc_low=auc.low,
            auc_high=auc.high,
            max_logit_difference=float(np.abs(predictions.logits - self.reference.logits).max()),
            flipped_decisions=int((predictions.decisions != self.reference.decisions).sum()),
            auc_difference=(auc.value or 0) - (reference_auc.value or 0) if known else None,
        )


def run_folds(
    options: FoldsOptions,
    films: list[Film],
    data: dict[str, Any],
    out: Path,
    *,
    on_training: Progress = no_progress,
    on_stage: Stage = lambda stage: None,
) -> Record:
    """Cross-validate into ``out/study`` (resumed if there), then measure; returns the record.

    ``data`` describes the films for the record. ``on_stage`` is told what is being measured, and
    under which name an earlier record in ``out`` is kept.

    Raises :class:`UserError` as the training does. A peer that cannot run, breaks or fails parity
    is a row with its reason, and the rest goes on.
    """
    study = out / "study"
    started = None if study.exists() else time.monotonic()
    run_cross_validation(
        [options.model],
        options.training,
        films,
        study,
        fold_count=options.folds,
        on_progress=on_training,
    )
    device = default_device()
    set_aside(out, on_stage)
    record = start_record("folds", options.to_json(), device)
    first, folds = _load_folds(study, options, films)
    checkpoint = fold_checkpoints(study, options.model)[0]
    rows: list[Measurement] = []
    share: dict[str, float] = {}
    fold_metrics: list[dict[str, float | None]] = []
    for size in (options.size, *options.extra_sizes):
        job = _SizeJob(options, first, folds, checkpoint, size, on_stage)
        rows += job.run()
        if job.with_accuracy:
            fold_metrics = job.fold_metrics()
        share[str(size)] = _attention_share(
            first.model, first.metadata.preprocessing.at_height(size)
        )
    protocol = read_folds(study / FOLDS_FILE).protocol
    seconds = None if started is None else time.monotonic() - started
    done = Study(data, protocol, share, fold_metrics, seconds)
    record = replace(record, study=done, measurements=rows)
    return finish_record(record, device)


def _load_folds(
    study: Path, options: FoldsOptions, films: list[Film]
) -> tuple[LoadedModel, list[_Fold]]:
    films, labels = TASKS[options.training.task].select(films)
    folds = read_folds(study / FOLDS_FILE)
    loaded = [
        load_model(path, expected_model=options.model, backend="reference")
        for path in fold_checkpoints(study, options.model)
    ]
    parts = []
    for number, model in enumerate(loaded):
        _, held_out = folds.split(films, number)
        held_films, held_labels = [films[i] for i in held_out], [labels[i] for i in held_out]
        parts.append(_Fold(model.model.state_dict(), held_films, held_labels))
    return loaded[0], parts


def _fixed_batch_logits(
    call: FoldModel, fold: _Fold, cache: FilmCache, batch: int
) -> NDArray[np.float32]:
    """Logits in batches of one size (the last is filled up), so that nothing is compiled anew."""
    padding = math.ceil(len(fold.films) / batch) * batch - len(fold.films)
    dataset = FilmDataset(
        fold.films + fold.films[:1] * padding, fold.labels + fold.labels[:1] * padding, cache
    )
    logits = predict_logits(call, dataset, device=call.device, batch_size=batch)
    return logits[: len(fold.films)]


def _attention_share(model: FilmModel, preprocessing: Preprocessing) -> float:
    """Attention's share of the floating-point operations of one film, by counting."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        build_model(model.config, "reference").eval()(
            torch.empty(1, 3, preprocessing.height, preprocessing.width)
        )
    counts = counter.get_flop_counts()["Global"]
    attention = sum(flops for op, flops in counts.items() if "hmc_fast" in str(op))
    return float(attention / sum(counts.values()))
