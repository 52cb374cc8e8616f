"""What machine code tells of a schedule: by hand-made loops, and of Hopper's launches."""

import pytest

from hmc_fast.kernels.building import aot
from hmc_fast.kernels.building.builds import find_launch
from hmc_fast.kernels.building.machine_code import Instruction, Loop, matrix_loops, read
from hmc_fast.kernels.building.pipes import predict
from hmc_fast.kernels.building.schedules import Schedule, schedule_of
from hmc_fast.kernels.fused.launch import Target
from hmc_fast.kernels.fused.tiles import TileEntry, load_tiles
from hmc_fast.kernels.geometry import cross_attention_problem, self_attention_problem
from hmc_fast.kernels.problem import AttentionProblem

LARGE = self_attention_problem("c3", 1024, batch=8)
RAGGED = self_attention_problem("c3", 224, batch=8)
SOURCES = cross_attention_problem(1024, batch=8)
PRODUCT = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"


def loop(*texts: str) -> Loop:
    return Loop(tuple(Instruction(16 * i, text, 1, (), 0) for i, text in enumerate(texts)))


def listing(*texts: str) -> str:
    """As ``cuobjdump`` prints code, without stalls or scoreboards."""
    line = "        /*{:04x}*/    {} ;    /* 0x0 */\n              /* 0x000fc00000000000 */\n"
    return "".join(line.format(16 * i, text) for i, text in enumerate(texts))


def test_a_wait_between_two_steps_of_a_product_is_seen() -> None:
    assert loop(PRODUCT, WAIT, PRODUCT, WAIT).serialised == 1
    assert loop(PRODUCT, PRODUCT, WAIT).serialised == 0
    other = PRODUCT.replace("R24", "R88")
    assert loop(PRODUCT, WAIT, other, WAIT).serialised == 0


def test_loads_in_flight_are_counted_in_passes() -> None:
    copies = ("LDGSTS.E.BYPASS.128 [R1], desc[UR2][R4.64]", "LDGDEPBAR") * 2
    assert loop("DEPBAR.LE SB0, 0x2", *copies).loads_in_flight == 1
    assert loop("DEPBAR.LE SB0, 0x0", *copies).loads_in_flight == 0
    assert loop(PRODUCT).loads_in_flight is None


def test_barriers_of_a_group_are_not_those_of_the_block() -> None:
    barriers = loop("BAR.SYNC.DEFER_BLOCKING 0x0", "BAR.SYNC.DEFER_BLOCKING 0x2, 0x80")
    assert barriers.block_barriers(256) == 1
    assert barriers.block_barriers(128) == 2


def test_code_moved_out_of_line_is_no_loop() -> None:
    code = read(
        listing(
            "NOP", "@!P0 BRA 0x60", PRODUCT, WAIT, "@P1 BRA 0x0010", "EXIT", "NOP", "BRA 0x0020"
        )
    )  # fmt: skip
    (found,) = matrix_loops(code)
    assert [i.address for i in found.body] == [0x10, 0x20, 0x30, 0x40]


def test_hints_behind_an_instruction_are_no_part_of_it() -> None:
    """As the disassembler of Triton 3.6 prints them for sm_120."""
    (wait,) = read(listing("DEPBAR.LE SB0, 0x2" + " " * 40 + "?WAIT4_END_GROUP"))
    assert wait.text == "DEPBAR.LE SB0, 0x2"
    assert wait.last_number == 2


def test_the_busiest_pipe_bounds_a_pass() -> None:
    alone = predict([loop(PRODUCT, PRODUCT, WAIT)], 1, 0)
    assert alone.pipes["tensor"] == 64
    assert 0.5 < alone.share < 1
    streaming = predict([loop(PRODUCT, PRODUCT, WAIT)], 1, 24_000)
    assert (streaming.busiest, streaming.period) == ("L2", 1000)


def test_waiting_for_each_step_costs_time() -> None:
    together = predict([loop(*[PRODUCT] * 8, WAIT)], 1, 0)
    apart = predict([loop(*[PRODUCT, WAIT] * 8)], 1, 0)
    assert apart.share < 0.7 * together.share


def schedule(
    kernel: str,
    *,
    problem: AttentionProblem = LARGE,
    position: int = 0,
    stages: int | None = None,
) -> Schedule:
    """Of a launch of the model on Hopper; with another number of stages if given."""
    tiles = load_tiles("sm_90")
    if stages:
        tile = tiles.choose(kernel, 16, 64, 256, problem.queries)
        other = type(tile)(tile.blocks, tile.num_warps, stages)
        tiles = tiles.instead(kernel, [TileEntry(16, 64, 256, None, (other,))])
    launch = find_launch(Target(tiles, 132, "ieee"), problem, kernel, position)
    compiled = aot.compile_for(launch, "sm_90")
    found = schedule_of(launch, compiled, aot.resources(compiled))
    assert found is not None
    return found


def share(found: Schedule) -> float:
    assert found.prediction is not None
    return found.prediction.share


@pytest.mark.compile_only
@pytest.mark.systems
@pytest.mark.timeout(900)
def test_hoppers_largest_launches_are_bounded() -> None:
    """Bounds on predictions; widths of products of a score: 384 for dq, 640 for dk and dv."""
    forward, dq = schedule("specialised_forward"), schedule("attention_backward_q")
    kv = schedule("specialised_backward_kv")
    for found in (forward, dq, kv):
        assert (found.serialised, found.spills) == (0, 0)
        assert found.loads_in_flight
    for found in (forward, kv):
        assert found.specialised
        assert found.block_barriers == 0
    assert share(forward) >= 0.62
    assert share(dq) >= 0.60
    assert 704 / (384 / share(dq) + 640 / share(kv)) >= 0.40  # 704: what five products need


@pytest.mark.compile_only
@pytest.mark.systems
@pytest.mark.timeout(900)
def test_hoppers_ragged_and_joined_forwards_are_bounded() -> None:
    """Bounds on predictions; masks cost next to nothing, and each source has its own kernel."""
    ragged = schedule("specialised_forward", problem=RAGGED)
    sources = [schedule("specialised_forward", problem=SOURCES, position=s) for s in range(2)]
    for found in (ragged, *sources):
        assert (found.serialised, found.spills, found.block_barriers) == (0, 0, 0)
        assert found.specialised
    assert share(ragged) >= 0.60
    work = [n * (64 + d) for n, d in zip(SOURCES.tokens, SOURCES.v_head_dims, strict=True)]
    time = sum(w / share(found) for w, found in zip(work, sources, strict=True))
    assert sum(work) / time >= 0.56


@pytest.mark.compile_only
@pytest.mark.systems
def test_two_stages_leave_nothing_in_flight() -> None:
    two = schedule("attention_backward_q", stages=2)
    assert two.loads_in_flight == 0
    assert share(two) < 0.6
