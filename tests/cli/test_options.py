"""TrainingConfig's fields as options."""

import typer

from hmc_fast.cli.training_options import takes_training
from hmc_fast.training import TrainingConfig

DEFAULTS = TrainingConfig(size=64, augment=False)


def parse(*arguments: str) -> TrainingConfig:
    received = []

    @takes_training(size=64, augment=False)
    def command(*, flag: bool = False, training: TrainingConfig) -> None:
        received.append(training)

    app = typer.Typer()
    app.command()(command)
    app(list(arguments), standalone_mode=False)
    return received[0]


def test_a_command_gets_its_defaults_and_what_is_given() -> None:
    assert parse() == DEFAULTS
    given = parse("--epochs", "3", "--augment", "--face-left", "--weights", "imagenet", "--flag")
    changes = {"epochs": 3, "augment": True, "face_left": True, "weights": "imagenet"}
    assert given == TrainingConfig(**{**DEFAULTS.to_json(), **changes})
    assert parse("--weights", "none") == DEFAULTS
