"""The commands of ``hmc-fast``: where each is, and the line that the list of commands shows.

A command's module imports what it needs, PyTorch for most; so only the chosen one is imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import typer


@dataclass(frozen=True)
class Command:
    """A command or a group of commands: ``home`` is ``module:attribute`` in ``hmc_fast.cli``."""

    name: str
    home: str
    summary: str

    def load(self) -> typer.Typer | Callable[..., None]:
        """The group, or the function of the command."""
        module, _, attribute = self.home.partition(":")
        loaded: typer.Typer | Callable[..., None] = getattr(
            import_module(f"hmc_fast.cli.{module}"), attribute
        )
        return loaded


COMMANDS = (
    Command("train", "train:train", "Train one model into a folder."),
    Command("cv", "cv:cv", "Train every model on every fold; resumable."),
    Command("evaluate", "evaluate:evaluate", "Metrics on patients that a model has not seen."),
    Command("predict", "predict:predict", "Class probabilities of films or archives."),
    Command("score", "score:score", "Class probabilities by a Triton Inference Server."),
    Command("explain", "explain:explain", "Maps of films: lesions, Grad-CAM, attended scales."),
    Command("localise", "localise:localise", "Maps against annotated lesions."),
    Command("leakage-probe", "leakage_probe:leakage_probe", "What a leaking split makes of AUC."),
    Command("verify", "verify:verify", "An exported graph or engine against its checkpoint."),
    Command("phantoms", "phantoms:phantoms", "Draw phantoms, laid out like MIAS."),
    Command("doctor", "doctor:doctor", "What this machine can run, and what is missing."),
    Command("gpu-check", "gpu_check:gpu_check", "What only a GPU proves: parity, exports, speed."),
    Command("bench", "bench_group:group", "Latency, memory and accuracy across folds, by peer."),
    Command("study", "study:study", "Reports and records of studies; the lesion study."),
    Command("export", "export:export", "ONNX files, engines, kernels, model repositories."),
    Command("serve", "serve:group", "A DICOM node: films in, reports and overlays back."),
    Command("kernels", "kernels:app", "The fused kernels: their resources, and tuning."),
)
"""Groups come last, as in the list that is shown."""


def register(app: typer.Typer, command: Command, *, load: bool = True) -> None:
    """Add ``command`` to ``app``: itself, or only its line in the list of commands."""
    loaded = command.load() if load else _listed
    if isinstance(loaded, typer.Typer):
        app.add_typer(loaded, name=command.name, short_help=command.summary)
    else:
        app.command(command.name, short_help=command.summary)(loaded)


def _listed() -> None:
    """Stands in for a command that was not chosen."""
