"""Scores of films, one by one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hmc_fast.prediction.manifest import make_manifest
from hmc_fast.prediction.scores import Scorer
from hmc_fast.prediction.sources import find_sources


def test_a_raw_detector_image_is_scored_only_where_that_is_allowed(
    scorer: Scorer, save_dicom: Callable[..., Path], tmp_path: Path
) -> None:
    raw = save_dicom(tmp_path / "raw.dcm", 1, PresentationIntentType="FOR PROCESSING")
    entries = make_manifest(find_sources([raw]), {}, lambda: None).entries
    (refused,) = scorer.score(entries)
    assert "for processing" in refused.error
    (scored,) = replace(scorer, allow_raw=True).score(entries)
    assert not scored.error
    assert len(scored.probabilities) == 2
