"""Who says from which probability on a film is positive."""

from dataclasses import replace

import pytest

from hmc_fast import UserError, create_model
from hmc_fast.checkpoint import CheckpointMetadata, OperatingPoint
from hmc_fast.data import Preprocessing
from hmc_fast.data.films import SEVERITIES
from hmc_fast.prediction.decision import decide

POINT = OperatingPoint(0.3, 0.9, 0.92, 0.6, 100)


@pytest.fixture(scope="module")
def metadata() -> CheckpointMetadata:
    config = create_model("hmc_net_resnet18").config
    return CheckpointMetadata(
        config, "malignant", ("rest", "malignant"), Preprocessing.square(32), {}, {}
    )


def test_the_option_goes_first_then_the_checkpoint(metadata: CheckpointMetadata) -> None:
    chosen = replace(metadata, operating_point=POINT)
    assert decide([chosen], 0.7, compare=False).threshold == 0.7
    decision = decide([chosen], None, compare=False)
    assert decision.threshold == 0.3
    assert "specificity 0.92, sensitivity 0.60 on training films out of fold" in decision.origin
    assert decide([metadata], None, compare=False).threshold is None


def test_an_ensemble_has_the_mean_threshold_or_none(metadata: CheckpointMetadata) -> None:
    members = [replace(metadata, operating_point=replace(POINT, threshold=t)) for t in (0.2, 0.6)]
    decision = decide(members, None, compare=False)
    assert decision.threshold == pytest.approx(0.4)
    assert "mean of 2 checkpoints" in decision.origin
    assert decide([*members, metadata], None, compare=False).threshold is None


def test_a_point_is_for_the_rule_that_it_was_chosen_with(metadata: CheckpointMetadata) -> None:
    chosen = replace(metadata, operating_point=POINT)
    decision = decide([chosen], None, compare=True)
    assert decision.threshold is None
    assert "for the checkpoint's rule" in decision.origin


def test_a_threshold_needs_two_classes(metadata: CheckpointMetadata) -> None:
    config = create_model("hmc_net_resnet18", num_classes=3).config
    three = replace(metadata, model=config, task="three_class", class_names=SEVERITIES)
    with pytest.raises(UserError, match="for two classes"):
        decide([three], 0.5, compare=False)
