"""What a loop's machine code lets a multiprocessor reach: a prediction, not a measurement.

A pass of a loop sends work to several pipes and is never shorter than the busiest needs. How much
longer it takes is found by playing a scheduler's warps against each other, instruction by
instruction: the assembler's own stalls and scoreboards, waits for products and loads, barriers.

Not modelled: misses of L2, the instruction cache, clocks that fall under load, what spilled
registers cost, what lies outside the loop. Rates are throughputs of the CUDA C++ Programming Guide
(arithmetic instructions, compute capability 9.0), latencies are those of Luo et al. 2024
(arXiv:2402.13499) for Hopper, rounded. How warps share the matrix units is an assumption: one step
of a product runs, one waits, the others hold their warps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hmc_fast.kernels.building.machine_code import Instruction, Loop

SCHEDULERS = 4
WARPS_OF_A_GROUP = 4
"""One on each scheduler, so that a warp group is one warp of the scheduler that is played."""
MATRIX_CELLS_PER_CYCLE = 128
"""Of a product's step, which is 32 bytes deep whatever the type: 4,096 FLOP in 16 bits a cycle and
multiprocessor, 989 TFLOP/s on 132 of them at 1.83 GHz."""
STEP_BYTES = 32
SHARED_BYTES_PER_CYCLE = 128
L2_BYTES_PER_CYCLE = 24
"""For each multiprocessor: an assumed 5.5 TB/s shared by 132 at 1.75 GHz."""
L2_LATENCY, SHARED_LATENCY, MATRIX_LATENCY, BARRIER_LATENCY = 270, 30, 30, 20
LATENCY = {"MUFU": 20, "SHFL": 24, "LDG": L2_LATENCY, "LDS": SHARED_LATENCY, "LDSM": SHARED_LATENCY}
OTHER_LATENCY = 16
EXPONENTIAL_CYCLES, SHUFFLE_CYCLES, HALF_RATE_CYCLES = 8, 4, 2
"""Of one scheduler for an instruction of one warp: 16, 32 and 64 results a cycle and SM."""
FP32 = ("FADD", "FMUL", "FFMA")
HALF_RATE = (
    "FMNMX", "FSEL", "FSETP", "F2FP", "IADD3", "IMAD",
    "ISETP", "LEA", "LOP3", "PLOP3", "SEL", "SHF",
)  # fmt: skip
PASSES, PASSES_TO_SETTLE = 12, 4


@dataclass(frozen=True)
class Prediction:
    """Cycles of a multiprocessor for one pass of all its warps, by pipe and altogether."""

    pipes: dict[str, float]
    period: float

    @property
    def share(self) -> float:
        """Of the matrix units' peak, between 0 and 1."""
        return self.pipes["tensor"] / self.period

    @property
    def busiest(self) -> str:
        return max(self.pipes, key=self.pipes.__getitem__)

    @property
    def exposed(self) -> float:
        """Cycles in which even the busiest pipe waits."""
        return self.period - self.pipes[self.busiest]


def predict(groups: Sequence[Loop], blocks: int, streamed_bytes: int) -> Prediction:
    """The pass of ``blocks`` blocks on one multiprocessor, each with a warp group for each loop.

    ``streamed_bytes`` are those that a pass of a block fetches by other warps (the tensor memory
    accelerator); copies in the loops themselves are counted from their instructions.
    """
    loops = [loop for _ in range(blocks) for loop in groups]
    copied = sum(_copied_bytes(i) for loop in loops for i in loop.body)
    fetched = copied + blocks * streamed_bytes
    instructions = [i for loop in loops for i in loop.body]
    shared = (
        sum(map(_shared_cycles, instructions)) + blocks * streamed_bytes / SHARED_BYTES_PER_CYCLE
    )
    pipes = {
        "tensor": sum(map(_tensor_cycles, instructions)),
        "exponential": EXPONENTIAL_CYCLES * sum(i.kind == "MUFU" for i in instructions),
        "fp32": sum(i.kind in FP32 for i in instructions),
        "issue": len(instructions),
        "shared memory": shared,
        "L2": fetched / L2_BYTES_PER_CYCLE,
    }
    pipes = {name: float(cycles) for name, cycles in pipes.items()}
    played = _Scheduler(loops, len(groups)).play()
    return Prediction(pipes, max(played, *pipes.values()))


def _tensor_cycles(instruction: Instruction) -> float:
    tile = _group_tile(instruction)
    return tile[0] * tile[1] / MATRIX_CELLS_PER_CYCLE if tile else 0.0


def _shared_cycles(instruction: Instruction) -> float:
    """For all four warps of a group: what a product reads, or a copy writes."""
    tile = _group_tile(instruction)
    if tile:
        left = 0 if instruction.operands[1].startswith("R") else tile[0]
        return STEP_BYTES * (left + tile[1]) / SHARED_BYTES_PER_CYCLE
    if instruction.kind in ("LDS", "STS", "LDSM", "STSM", "LDGSTS"):
        return WARPS_OF_A_GROUP * _warp_bytes(instruction) / SHARED_BYTES_PER_CYCLE
    return 0.0


def _group_tile(instruction: Instruction) -> tuple[int, int, int] | None:
    return instruction.matrix_tile if instruction.kind == "HGMMA" else None


def _copied_bytes(instruction: Instruction) -> int:
    """From L2 by a warp group."""
    loads = instruction.kind in ("LDGSTS", "LDG")
    return WARPS_OF_A_GROUP * _warp_bytes(instruction) if loads else 0


def _warp_bytes(instruction: Instruction) -> int:
    modifiers = instruction.name.split(".")
    if instruction.kind in ("LDSM", "STSM"):
        return 128 * int(next((m for m in modifiers if m in ("2", "4")), "1"))
    return 32 * (16 if "128" in modifiers else 8 if "64" in modifiers else 4)


@dataclass
class _Warp:
    """Where a warp of one group is in its loop, and what it waits for; times in cycles."""

    body: tuple[Instruction, ...]
    block: int
    at: int = 0
    passes: int = 0
    ready: float = 0.0
    issued: float = 0.0
    held: bool = False
    scoreboards: list[float] = field(default_factory=lambda: [0.0] * 6)
    product: float = 0.0
    products: list[float] = field(default_factory=list)
    copy: float = 0.0
    copies: list[float] = field(default_factory=list)

    @property
    def next(self) -> Instruction:
        return self.body[self.at]

    def earliest(self) -> float:
        """When its next instruction finds what it waits for."""
        instruction, when = self.next, self.ready
        for number, done in enumerate(self.scoreboards):
            if instruction.waits >> number & 1:
                when = max(when, done)
        if instruction.name == "WARPGROUP.DEPBAR.LE":
            when = max(when, _left_open(self.products, instruction.last_number))
        if instruction.kind == "DEPBAR":
            when = max(when, _left_open(self.copies, instruction.last_number))
        return when


def _left_open(done: Sequence[float], count: int) -> float:
    """When all but the last ``count`` are done."""
    return done[-count - 1] if len(done) > count else 0.0


class _Scheduler:
    """One of a multiprocessor's four, with a warp of each group; they share all but issue slots."""

    def __init__(self, loops: Sequence[Loop], groups_of_a_block: int) -> None:
        self.warps = [_Warp(loop.body, i // groups_of_a_block) for i, loop in enumerate(loops)]
        self.slot = self.tensor = self.started = self.l2 = 0.0
        self.pipes: dict[str, float] = {}

    def play(self) -> float:
        """Cycles of a pass, once the warps have found their order."""
        settled = 0.0
        while any(warp.passes < PASSES for warp in self.warps):
            warp = min(
                (w for w in self.warps if not w.held), key=lambda w: (self._when(w), w.issued)
            )
            before = min(w.passes for w in self.warps)
            now = self._issue(warp)
            if before < PASSES_TO_SETTLE <= min(w.passes for w in self.warps):
                settled = now
        return (now - settled) / (PASSES - PASSES_TO_SETTLE)

    def _when(self, warp: _Warp) -> float:
        pipe, _ = _pipe(warp.next)
        queue = self.started if warp.next.kind == "HGMMA" else 0.0
        return max(warp.earliest(), self.slot, self.pipes.get(pipe, 0.0), queue)

    def _issue(self, warp: _Warp) -> float:
        instruction, now = warp.next, self._when(warp)
        pipe, cycles = _pipe(instruction)
        self.slot = warp.issued = now + 1
        self.pipes[pipe] = now + cycles
        warp.ready = now + max(instruction.stall, 1)
        done = now + LATENCY.get(instruction.kind, OTHER_LATENCY)
        if instruction.kind == "HGMMA":
            done = self._multiply(warp, instruction, now)
        elif instruction.kind == "LDGSTS":
            self.l2 = max(self.l2, now) + _copied_bytes(instruction) / L2_BYTES_PER_CYCLE
            warp.copy = self.l2 + L2_LATENCY
        elif instruction.kind == "LDGDEPBAR":
            warp.copies.append(warp.copy)
        elif instruction.kind == "BAR":
            self._hold(warp, now)
        for number in instruction.sets:
            warp.scoreboards[number] = done
        warp.at = (warp.at + 1) % len(warp.body)
        warp.passes += warp.at == 0
        return now

    def _multiply(self, warp: _Warp, instruction: Instruction, now: float) -> float:
        busy = max(_tensor_cycles(instruction), _shared_cycles(instruction))
        self.started = max(self.tensor, now)
        self.tensor = self.started + busy
        if "gsb0" in instruction.text:
            warp.products.append(self.tensor + MATRIX_LATENCY)
        return self.tensor

    def _hold(self, warp: _Warp, now: float) -> None:
        """A barrier of a group costs its latency; one of the block waits for the last group."""
        warp.ready = now + BARRIER_LATENCY
        if len(warp.next.operands) > 1:
            return
        warp.held = True
        others = [w for w in self.warps if w.block == warp.block]
        if all(w.held for w in others):
            for other in others:
                other.held, other.ready = False, warp.ready


def _pipe(instruction: Instruction) -> tuple[str, int]:
    """What an instruction of one warp occupies on its scheduler, and for how many cycles."""
    kind = instruction.kind
    if kind == "MUFU":
        return "exponential", EXPONENTIAL_CYCLES
    if kind == "SHFL":
        return "shuffle", SHUFFLE_CYCLES
    if kind in FP32:
        return "fp32", 1
    return ("half rate", HALF_RATE_CYCLES) if kind in HALF_RATE else ("other", 1)
