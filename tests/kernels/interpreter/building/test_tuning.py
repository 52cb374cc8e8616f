"""The tuning command's search, with a stopwatch that prefers small blocks in place of a GPU's."""

import hashlib
from collections.abc import Callable, Iterator
from importlib.resources import files

import pytest
import torch

from hmc_fast.kernels.building.tuning import propose_tiles
from hmc_fast.kernels.fused import operators
from hmc_fast.kernels.fused.launch import Launch
from hmc_fast.kernels.fused.tiles import INTERPRETER, Tile, load_tiles, parse_tiles
from hmc_fast.kernels.problem import AttentionProblem

PROBLEM = AttentionProblem(1, 40, 1, (50,), (32,), 16, torch.float16)


def digests() -> dict[str, str]:
    folder = files("hmc_fast.kernels.fused").joinpath("tuned")
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """The launches of the newest call."""
    seen: list[Launch] = []
    run = operators.run

    def record(x: torch.Tensor, launches: list[Launch]) -> None:
        seen[:] = launches
        run(x, launches)

    monkeypatch.setattr(operators, "run", record)
    return seen


def test_the_fastest_right_tile_comes_first_and_nothing_installed_changes(
    launched: list[Launch],
) -> None:
    def candidates(default: Tile) -> Iterator[Tile]:
        yield default
        for size in (32, 24, 16):  # 24 is no power of two and cannot be built
            yield Tile(dict.fromkeys(default.blocks, size), default.num_warps, 1)

    def stopwatch(call: Callable[[], object]) -> float:
        call()
        return float(
            sum(sum(x.constants.get(n, 0) for n in ("BLOCK_M", "BLOCK_N")) for x in launched)
        )

    before = digests()
    steps: list[str] = []
    document = propose_tiles(
        torch.device("cpu"),
        stopwatch,
        problems=[PROBLEM],
        candidates=candidates,
        progress=lambda what, done, total: steps.append(what),
    )
    assert digests() == before
    assert len(steps) == 3
    proposal, shipped = parse_tiles(INTERPRETER, document), load_tiles(INTERPRETER)
    assert proposal.value_columns == shipped.value_columns
    assert proposal.entries.keys() == shipped.entries.keys()
    tuned = 0
    for kernel, entries in proposal.entries.items():
        assert len(entries) == len(shipped.entries[kernel])
        for entry, old in zip(entries, shipped.entries[kernel], strict=True):
            if entry == old:
                continue
            tuned += 1
            assert kernel in ("attention_forward", "attention_backward_q", "attention_backward_kv")
            assert set(entry.tiles[0].blocks.values()) == {16}
            assert all(set(tile.blocks.values()) != {24} for tile in entry.tiles)
            times = [
                t["milliseconds"]
                for e in document[kernel]
                for t in e["tiles"]
                if "milliseconds" in t
            ]
            assert times == sorted(times)
    assert tuned == 3
