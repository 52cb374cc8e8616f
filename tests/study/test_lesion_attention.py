"""Attention on cached features: what it learns from, what it sees, and that it can learn at all."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from hmc_fast.data.frame import Box, Frame
from hmc_fast.models.lesion_head import LesionHead
from hmc_fast.study import lesion_attention
from hmc_fast.study.lesion_attention import attended_features, fit_attention
from hmc_fast.tensor_files import read_safetensors, write_safetensors
from hmc_fast.training.features import METADATA_KEY, read_features
from hmc_fast.training.lesion_fit import FilmPositions, film_scores, fit_lesion_head

C3_CHANNELS, C4_CHANNELS = 4, 256
SIDE, FILMS, TAUGHT = 6, 48, 20
HELD_OUT = range(32, FILMS)
FRAME = Frame(96, 96, Box(0, 96, 0, 96, mirrored=False), 1.0, 0, 0, 96, 96)


@dataclass(frozen=True)
class Pairs:
    """Breasts in pairs whose cells are positive where the *other* breast's last channel is high.

    A breast's own features say nothing of it. Films of ``HELD_OUT`` have no positions.
    """

    files: list[Path]
    labels: list[bool]
    positions: list[FilmPositions | None]
    head: LesionHead

    @property
    def mates(self) -> list[int]:
        return [index ^ 1 for index in range(FILMS)]

    def held_out_auc(self, *, both: bool) -> float:
        """After attention that was fitted to the others."""
        block = fit_attention(self.head, self.positions, self.files, self.mates, both=both, seed=0)
        films = [attended_features(block, self.files, self.mates, i) for i in HELD_OUT]
        scores = [film_scores(self.head, film, ["mean"])["mean"] for film in films]
        return float(roc_auc_score([self.labels[i] for i in HELD_OUT], scores))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    folder = tmp_path_factory.mktemp("pairs")
    generator = torch.Generator().manual_seed(0)
    high = [bool((index // 2 >> index % 2) & 1) for index in range(FILMS)]
    labels = [high[index ^ 1] for index in range(FILMS)]
    files: list[Path] = []
    positions: list[FilmPositions | None] = []
    for index in range(FILMS):
        cells = torch.randn(2 * C3_CHANNELS + C4_CHANNELS, SIDE, SIDE, generator=generator)
        cells[-1] += 4.0 if high[index] else -4.0
        file = folder / f"{index}.safetensors"
        write_safetensors(
            file,
            {"cells": cells.half(), "breast": torch.ones(SIDE, SIDE, dtype=torch.uint8)},
            {METADATA_KEY: json.dumps({"film": f"{index:064x}", "frame": FRAME.to_json()})},
        )
        files.append(file)
        targets = np.full((TAUGHT, 3), labels[index])
        drawn = cells.half().flatten(1).T[:TAUGHT].contiguous()
        film = FilmPositions(drawn, targets, np.full(TAUGHT, 1 / TAUGHT))
        positions.append(None if index in HELD_OUT else film)
    head = fit_lesion_head([f for f in positions if f is not None], C3_CHANNELS, C4_CHANNELS)
    return Pairs(files, labels, positions, head)


def test_what_only_the_other_breast_tells_is_learned_from_both_alone(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesion_attention, "EPOCHS", 8)
    monkeypatch.setattr(lesion_attention, "LEARNING_RATE", 1e-2)
    assert pairs.held_out_auc(both=True) > 0.95
    assert pairs.held_out_auc(both=False) < 0.85


def test_one_seed_gives_one_block_and_the_head_stays(pairs: Pairs) -> None:
    before = {name: value.clone() for name, value in pairs.head.state_dict().items()}
    state = torch.random.get_rng_state()
    blocks = [
        fit_attention(pairs.head, pairs.positions, pairs.files, pairs.mates, both=True, seed=seed)
        for seed in (0, 0, 1)
    ]
    first, again, other = (block.state_dict() for block in blocks)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["gamma"], other["gamma"])
    assert first["gamma"].any()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[n], value) for n, value in pairs.head.state_dict().items())


def test_a_film_that_teaches_nothing_changes_nothing(pairs: Pairs) -> None:
    silent = [None if index in (4, 5) else film for index, film in enumerate(pairs.positions)]
    kept = [index for index in range(FILMS) if index not in (4, 5)]
    files, taught = [pairs.files[i] for i in kept], [pairs.positions[i] for i in kept]
    with_it = fit_attention(pairs.head, silent, pairs.files, pairs.mates, both=True, seed=0)
    without = fit_attention(
        pairs.head, taught, files, [i ^ 1 for i in range(len(kept))], both=True, seed=0
    )
    assert torch.equal(with_it.gamma, without.gamma)


def test_cells_outside_the_breast_neither_ask_nor_answer(pairs: Pairs, tmp_path: Path) -> None:
    block = fit_attention(pairs.head, pairs.positions, pairs.files, pairs.mates, both=True, seed=0)
    tensors, metadata = read_safetensors(pairs.files[3])
    tensors["breast"][:, 3:] = 0
    files = [tmp_path / f"{index}.safetensors" for index in range(4)]
    for file, noise in zip(files, (0, 0, 1, 1), strict=True):
        tensors["cells"][:, :, 3:] += noise
        write_safetensors(file, tensors, metadata)
    quiet, noisy = (attended_features(block, files, [1, 0, 3, 2], index) for index in (0, 2))
    assert torch.equal(quiet.cells[:, :, :3], noisy.cells[:, :, :3])
    assert torch.equal(noisy.cells[:, :, 3:], tensors_of(files[2])[:, :, 3:])


def tensors_of(file: Path) -> torch.Tensor:
    return read_features(file).cells.float()


def test_only_c4_is_changed_and_a_fresh_block_changes_nothing(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = read_features(pairs.files[3]).cells.float()
    block = fit_attention(pairs.head, pairs.positions, pairs.files, pairs.mates, both=False, seed=0)
    attended = attended_features(block, pairs.files, pairs.mates, 3).cells
    assert torch.equal(attended[: 2 * C3_CHANNELS], stored[: 2 * C3_CHANNELS])
    assert not torch.equal(attended[2 * C3_CHANNELS :], stored[2 * C3_CHANNELS :])
    monkeypatch.setattr(lesion_attention, "EPOCHS", 0)
    fresh = fit_attention(pairs.head, pairs.positions, pairs.files, pairs.mates, both=False, seed=0)
    assert torch.equal(attended_features(fresh, pairs.files, pairs.mates, 3).cells, stored)
