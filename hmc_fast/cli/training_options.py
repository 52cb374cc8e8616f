"""Options that the settings of a training run become, and models and weights by name."""

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from hmc_fast.cli.choices import choice, one_of
from hmc_fast.cli.options import PRECISIONS
from hmc_fast.data import TASKS
from hmc_fast.errors import UserError
from hmc_fast.models.registry import MODEL_NAMES, TRUNKS
from hmc_fast.training.config import SCHEDULES, TrainingConfig

NO_WEIGHTS = "none"


def _help_of(name: str) -> str:
    (text,) = (f.metadata["help"] for f in fields(TrainingConfig) if f.name == name)
    return str(text)


MODEL_METAVAR = "MODEL"
CHOICES = {"task": tuple(TASKS), "precision": PRECISIONS, "schedule": SCHEDULES}
"""Words of the settings that take one of some."""


def _model(help: str) -> Any:
    names = f"{help}: {', '.join(MODEL_NAMES)}."
    return choice("model", MODEL_NAMES, help=names, metavar=MODEL_METAVAR)


ModelName = Annotated[str, _model("Model to train")]
ModelNames = Annotated[list[str] | None, _model("Model to train; repeatable, or use --models")]
OptionalModel = Annotated[str | None, _model("Model to measure")]
TaskName = Annotated[str, choice("task", tuple(TASKS), help=_help_of("task"))]
Loggers = Annotated[
    list[str] | None,
    choice(
        "logger",
        ("tensorboard", "wandb", "mlflow"),
        help="Where learning curves go besides history.csv; repeatable.",
    ),
]
Weights = Annotated[str, typer.Option("--weights", help=_help_of("weights"))]


def takes_training(**defaults: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every field of :class:`TrainingConfig`.

    The command takes them as one parameter ``training``, in whose place they appear. ``defaults``
    replace those of the class.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        offered = fields(TrainingConfig)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            if parameter.name == "training":
                parameters += [_parameter(f, defaults.get(f.name, f.default)) for f in offered]
            else:
                parameters.append(parameter)

        @wraps(command)
        def run(**values: Any) -> None:
            settings = {f.name: values.pop(f.name) for f in offered}
            settings["weights"] = trunk_weights(settings["weights"])
            command(training=TrainingConfig(**settings), **values)

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameter(setting: Field[Any], default: object) -> inspect.Parameter:
    kind = setting.metadata["kind"]
    if setting.name == "weights":
        default = default or NO_WEIGHTS
    option = f"--{setting.name.replace('_', '-')}"
    if kind is bool and default:
        option += f"/--no-{setting.name.replace('_', '-')}"
    offered = kind if default is not None else kind | None
    help = setting.metadata["help"]
    if setting.name in CHOICES:
        words = CHOICES[setting.name]
        declared = choice(setting.name, words, option, help=help)
    else:
        declared = typer.Option(option, help=help, **setting.metadata["bounds"])
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[offered, declared],
    )


def trunk_weights(value: str) -> str | None:
    """The ``--weights`` value; files must exist. Raises :class:`UserError` where one does not."""
    if value == NO_WEIGHTS:
        return None
    if "=" not in value or Path(value).is_file():
        _check_weights(value)
        return value
    chosen = []
    for part in value.split(","):
        trunk, _, source = part.partition("=")
        if trunk not in TRUNKS or not source:
            raise UserError(
                f"--weights {part}: needs TRUNK=FILE, where TRUNK is one of {', '.join(TRUNKS)}"
            )
        if source != NO_WEIGHTS:
            _check_weights(source)
            chosen.append(part)
    return ",".join(chosen) or None


def _check_weights(value: str) -> None:
    if value != "imagenet" and not Path(value).is_file():
        raise UserError(f"--weights {value}: no such file; name one, or imagenet, or none")


def model_name(value: str) -> str:
    """Raises :class:`UserError` for an unknown model."""
    return one_of("model", MODEL_NAMES, value)
