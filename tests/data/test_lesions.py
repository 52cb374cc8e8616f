"""Lesion masks: MIAS counts y from the bottom."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hmc_fast.data import Film, Finding, read_mias, read_pixels
from hmc_fast.data.lesions import lesion_mask
from hmc_fast.data.mias import read_findings


def film(*findings: Finding) -> Film:
    return Film("mdb001", "p000", Path("mdb001.pgm"), findings)


def test_y_counts_from_the_bottom() -> None:
    mask = lesion_mask(film(Finding("CIRC", "benign", x=10, y=5, radius=3)), (50, 40))
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max()) == (49 - 5 - 3, 49 - 5 + 3)
    assert (columns.min(), columns.max()) == (7, 13)
    assert mask.sum() == pytest.approx(np.pi * 9, rel=0.1)


def test_several_findings_and_findings_without_a_circle() -> None:
    first = Finding("CALC", "malignant", 5, 5, 2)
    second = Finding("CALC", "malignant", 30, 30, 2)
    both = lesion_mask(film(first, second, Finding("ASYM", "benign")), (40, 40))
    assert both.sum() == 2 * lesion_mask(film(first), (40, 40)).sum()
    assert not lesion_mask(film(Finding("ASYM", "benign")), (40, 40)).any()
    assert not lesion_mask(film(Finding("CIRC", "benign", 500, 500, 3)), (40, 40)).any()


def test_phantom_lesions_are_where_the_mask_is(phantoms: list[Film]) -> None:
    malignant = [c for c in phantoms if c.severity == "malignant"]
    for found in malignant:
        pixels = read_pixels(found.path)
        inside = lesion_mask(found, pixels.shape) > 0
        assert pixels[inside].max() == pixels.max()
        assert pixels[inside].mean() > 1.5 * pixels[~inside].mean()


def test_findings_are_read_without_their_films(phantom_folder: Path, tmp_path: Path) -> None:
    findings = read_findings(phantom_folder / "Info.txt")
    assert findings == {c.film_id: c.findings for c in read_mias(phantom_folder)}


@pytest.mark.real_data
def test_real_lesions_stand_out_where_the_mask_is_and_not_upside_down(real_data: Path) -> None:
    def widened(found: Film) -> Film:
        findings = (replace(f, radius=f.radius and 2 * f.radius) for f in found.findings)
        return replace(found, findings=tuple(findings))

    upright, upside_down = [], []
    for found in read_mias(real_data / "mias"):
        pixels = read_pixels(found.path)
        mask = lesion_mask(found, pixels.shape) > 0
        if mask.any():
            ring = (lesion_mask(widened(found), pixels.shape) > 0) & ~mask
            upright.append(pixels[mask].mean() - pixels[ring].mean())
            upside_down.append(pixels[mask[::-1]].mean() - pixels[ring[::-1]].mean())
    assert len(upright) == 89
    assert np.mean(np.array(upright) > 0) > 0.95
    assert np.mean(upright) > 2 * np.mean(upside_down)
