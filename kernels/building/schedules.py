"""How a compiled launch schedules its hottest loop, and what that lets the GPU reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hmc_fast.kernels.building import aot
from hmc_fast.kernels.building.machine_code import Loop, matrix_loops, read, register_limits
from hmc_fast.kernels.building.pipes import Prediction, predict
from hmc_fast.kernels.fused.launch import Launch

STREAMED_ROWS: Mapping[str, str] = {
    "specialised_forward": "BLOCK_N",
    "specialised_backward_kv": "BLOCK_M",
}
"""The rows of q, k, v or dout that one pass of a warp-specialised kernel fetches, all columns."""
WARPS_OF_A_GROUP = 4
REGISTERS, SHARED_KIB, RESERVED_SHARED_KIB = 65536, 228, 1
"""Of a Hopper multiprocessor, and what each block takes beside its own (Hopper tuning guide)."""


@dataclass(frozen=True)
class Schedule:
    """The loop with most matrix work. ``registers_moved`` is empty where warps keep theirs.

    ``loads_in_flight`` counts the passes whose loads the barest wait leaves open; None where a loop
    loads nothing ahead. Where other warps load, no wait in the loop tells, and it is the launch's
    stages less one. ``prediction`` exists for Hopper's warp-group products.
    """

    products: str
    serialised: int
    spills: int
    loads_in_flight: float | None
    block_barriers: int
    registers_moved: tuple[int, ...]
    instructions: int
    multiplications: float
    prediction: Prediction | None

    @property
    def specialised(self) -> bool:
        return bool(self.registers_moved)

    @property
    def instructions_per_1000_products(self) -> float:
        return 1000 * self.instructions / self.multiplications

    def cells(self) -> tuple[str, str, str]:
        """For a table: what the loop does, what it waits for, and what is predicted."""
        counts = f"{self.products}, {self.instructions}"
        spills = f", {self.spills} spills" if self.spills else ""
        waits = f"{self.loads_in_flight or 0:g} loads, {self.block_barriers} barriers"
        moved = (
            f"; registers {'/'.join(map(str, self.registers_moved))}" if self.specialised else ""
        )
        if self.prediction is None:
            return counts + spills, waits, ""
        p = self.prediction
        share = f"{p.share:.0%} of peak; {p.busiest} busiest, {p.exposed:.0f} cycles exposed"
        return counts + spills, waits + moved, share


def schedule_of(launch: Launch, compiled: Any, used: aot.Resources) -> Schedule | None:
    """The schedule of a compiled ``launch``; None where no loop of it has matrix products."""
    code = read(aot.cuobjdump("--dump-sass", compiled.asm["cubin"]))
    loops = matrix_loops(code)
    if not loops:
        return None
    moved = register_limits(code)
    threads = 0 if moved else launch.num_warps * aot.WARP_SIZE
    hottest = max(loops, key=lambda loop: sum(i.multiplications for i in loop.body))
    return Schedule(
        products=hottest.mix,
        serialised=sum(loop.serialised for loop in loops),
        spills=sum(loop.spills for loop in loops),
        loads_in_flight=float(launch.num_stages - 1) if moved else hottest.loads_in_flight,
        block_barriers=max(loop.block_barriers(threads) for loop in loops),
        registers_moved=moved,
        instructions=len(hottest.body),
        multiplications=sum(i.multiplications for i in hottest.body),
        prediction=_predict(launch, used, loops, hottest, bool(moved)),
    )


def _predict(
    launch: Launch, used: aot.Resources, loops: list[Loop], hottest: Loop, specialised: bool
) -> Prediction | None:
    if hottest.products[0].kind != "HGMMA":
        return None
    if specialised:  # each loop belongs to a warp group of its own
        return predict(loops, 1, _streamed_bytes(launch))
    groups = launch.num_warps // WARPS_OF_A_GROUP
    return predict([hottest] * groups, _resident_blocks(launch, used), 0)


def _streamed_bytes(launch: Launch) -> int:
    rows = launch.constants[STREAMED_ROWS[launch.name]]
    columns = launch.constants["D_QK"] + launch.constants["D_V"]
    return int(rows * columns * launch.arguments["q_ptr"].element_size())


def _resident_blocks(launch: Launch, used: aot.Resources) -> int:
    by_memory = SHARED_KIB // (used.shared_kib + RESERVED_SHARED_KIB)
    by_registers = REGISTERS // (used.registers * launch.num_warps * aot.WARP_SIZE)
    return max(1, int(min(by_memory, by_registers)))
