"""``hmc-fast bench``: what its presets stand for."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from hmc_fast.bench.jobs import folds
from hmc_fast.bench.jobs.folds import FoldsOptions
from hmc_fast.cli.bench import PRESETS
from hmc_fast.errors import UserError
from hmc_fast.models import model_entry


@pytest.fixture
def planned(
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
    phantom_folder: Path,
    tmp_path: Path,
) -> Callable[..., FoldsOptions]:
    """What the main job would run with these arguments; nothing is trained."""
    taken: list[FoldsOptions] = []

    def stop(chosen: FoldsOptions, *_: object, **__: object) -> NoReturn:
        taken.append(chosen)
        raise UserError("planned")

    def plan(*arguments: str) -> FoldsOptions:
        monkeypatch.setattr(folds, "run_folds", stop)
        data = ["--data", str(phantom_folder), "--out", str(tmp_path / str(len(taken)))]
        assert "planned" in fails("bench", *data, *arguments)
        return taken.pop()

    return plan


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_a_plan(planned: Callable[..., FoldsOptions], name: str) -> None:
    chosen, preset = planned("--preset", name), PRESETS[name]
    assert (chosen.model, chosen.folds) == (preset.model, preset.folds)
    head = model_entry(preset.model).config.lesion_head
    expected = preset.head_epochs if head else preset.epochs
    assert chosen.training.epochs_of(preset.model) == expected


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_takes_models_of_both_kinds(
    planned: Callable[..., FoldsOptions], name: str
) -> None:
    plain = planned("--preset", name, "--model", "hmc_net")
    assert plain.training.epochs_of("hmc_net") == PRESETS[name].epochs
    head = planned("--preset", name, "--model", "hmc_net_lesions")
    assert head.training.epochs_of("hmc_net_lesions") == PRESETS[name].head_epochs


def test_epochs_are_those_of_the_models_kind(planned: Callable[..., FoldsOptions]) -> None:
    kept = planned("--model", "hmc_net_lesions", "--epochs", "0")
    assert kept.training.epochs_of("hmc_net_lesions") == 0
    assert planned("--model", "hmc_net", "--epochs", "7").training.epochs_of("hmc_net") == 7
