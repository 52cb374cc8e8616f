"""A kernel's loops as its machine code has them: instructions with the assembler's own schedule.

Each instruction carries how long the assembler makes the next one wait and which scoreboards it
sets and waits for, in the upper half of its 128 bits (Jia et al. 2018, arXiv:1804.06826). So what a
loop waits for can be read without a GPU.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

MATRIX = ("HGMMA", "HMMA", "UTCHMMA")
NO_SCOREBOARD = 7
_LINE = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<text>[^;]*?)\s*;\s*/\* 0x[0-9a-f]+ \*/\n"
    r"\s+/\* 0x(?P<upper>[0-9a-f]{16}) \*/",
    re.M,
)
_TARGET = re.compile(r"\bBRA\b.*?0x([0-9a-f]+)")
_LEAVES = ("EXIT", "RET", "BRX", "JMX")


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``stall`` in cycles, scoreboards by number, ``waits`` a mask of them."""

    address: int
    text: str
    stall: int
    sets: tuple[int, ...]
    waits: int

    @cached_property
    def name(self) -> str:
        """With its modifiers, without its predicate: ``MUFU.EX2``."""
        words = self.text.split()
        return words[1] if words[0].startswith("@") else words[0]

    @cached_property
    def kind(self) -> str:
        """Without modifiers: ``MUFU``."""
        return self.name.partition(".")[0]

    @cached_property
    def operands(self) -> tuple[str, ...]:
        _, _, rest = self.text.partition(self.name)
        return tuple(word.strip() for word in rest.split(","))

    @cached_property
    def last_number(self) -> int:
        """The last operand, where that is a number: what a wait leaves open."""
        return int(self.operands[-1], 16)

    @cached_property
    def matrix_tile(self) -> tuple[int, int, int] | None:
        """Rows, columns and depth of one step of a warp group's or a warp's product."""
        if self.kind == "HGMMA":
            rows, columns, depth = self.name.split(".")[1].split("x")
            return int(rows), int(columns), int(depth)
        if self.kind == "HMMA":  # rows are 16 and columns 8: HMMA.16816
            return 16, 8, int(self.name.split(".")[1].removeprefix("168"))
        return None

    @property
    def multiplications(self) -> float:
        """Of one warp; 0 for what is no matrix product."""
        warps = 4 if self.kind == "HGMMA" else 1
        return prod(self.matrix_tile or (0,)) / warps

    @property
    def leaves(self) -> bool:
        """Whether no instruction after it is reached from it."""
        return self.kind in _LEAVES and not self.text.startswith("@")


@dataclass(frozen=True)
class Loop:
    """The body of an innermost loop with matrix products, in the order of its addresses."""

    body: tuple[Instruction, ...]

    def count(self, *kinds: str) -> int:
        """How many instructions are of one of ``kinds``."""
        return sum(i.kind in kinds for i in self.body)

    @cached_property
    def products(self) -> tuple[Instruction, ...]:
        return tuple(i for i in self.body if i.kind in MATRIX)

    @property
    def mix(self) -> str:
        """Products of one pass by their columns: ``4×64 + 4×256``."""
        widths = Counter(i.matrix_tile[1] if i.matrix_tile else i.kind for i in self.products)
        return " + ".join(f"{count}×{width}" for width, count in widths.items())

    @property
    def spills(self) -> int:
        """Stores to and loads from local memory."""
        return self.count("STL", "LDL")

    @property
    def serialised(self) -> int:
        """Waits for every product between two steps of the same product.

        That is what the assembler does where it cannot keep a warp group's accumulator in place.
        """
        found, previous, waited = 0, None, False
        for instruction in self.body:
            if instruction.kind == "HGMMA":
                accumulator = instruction.operands[0]
                continued = previous == accumulator and accumulator in instruction.operands[1:]
                found += waited and continued
                previous, waited = accumulator, False
            elif _waits_for_all_products(instruction):
                waited = True
        return found

    @property
    def loads_in_flight(self) -> float | None:
        """Passes' worth of copies to shared memory that the barest wait leaves open.

        None where the loop issues no such copies.
        """
        groups = self.count("LDGDEPBAR")
        waits = [i.last_number for i in self.body if i.kind == "DEPBAR" and "SB0" in i.text]
        return min(waits, default=0) / groups if groups else None

    def block_barriers(self, threads: int) -> int:
        """Barriers that hold all ``threads`` of the block."""
        barriers = [i for i in self.body if i.kind == "BAR"]
        return sum(len(i.operands) < 2 or i.last_number == threads for i in barriers)


def read(sass: str) -> list[Instruction]:
    """The instructions of what ``cuobjdump --dump-sass`` prints for one kernel."""
    return [_instruction(found) for found in _LINE.finditer(sass)]


def matrix_loops(code: Sequence[Instruction]) -> list[Loop]:
    """Innermost loops with matrix products, by the back edges of the control flow."""
    ranges = [
        (start, end)
        for start, end in _back_edges(code)
        if any(i.kind in MATRIX for i in code[start : end + 1])
    ]
    return [
        Loop(tuple(code[start : end + 1]))
        for start, end in ranges
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in ranges)
    ]


def register_limits(code: Sequence[Instruction]) -> tuple[int, ...]:
    """Registers of a thread that warps give up or take over, least first; empty without."""
    sizes = {i.last_number for i in code if i.kind == "USETMAXREG"}
    return tuple(sorted(sizes))


def _instruction(found: "re.Match[str]") -> Instruction:
    control = int(found["upper"], 16) >> 41
    scoreboards = ((control >> 5) & 7, (control >> 8) & 7)
    return Instruction(
        address=int(found["address"], 16),
        text=found["text"].partition(" ?")[0].rstrip(),  # some releases add hints for scheduling
        stall=control & 15,
        sets=tuple(s for s in scoreboards if s != NO_SCOREBOARD),
        waits=(control >> 11) & 63,
    )


def _waits_for_all_products(instruction: Instruction) -> bool:
    return instruction.name == "WARPGROUP.DEPBAR.LE" and instruction.last_number == 0


def _back_edges(code: Sequence[Instruction]) -> Iterator[tuple[int, int]]:
    """Positions of loops' first and last instructions.

    A branch back is a loop only where its target comes first on every path to it: code that waits
    is moved out of line and jumps back as well.
    """
    position = {i.address: at for at, i in enumerate(code)}
    successors = {at: list(_successors(code, at, position)) for at in range(len(code))}
    for at, following in successors.items():
        for target in following:
            if target <= at and not _reachable(successors, at, without=target):
                yield target, at


def _successors(code: Sequence[Instruction], at: int, position: Mapping[int, int]) -> Iterator[int]:
    instruction = code[at]
    branch = _TARGET.search(instruction.text)
    if branch and int(branch[1], 16) in position:
        yield position[int(branch[1], 16)]
    always = branch is not None and not instruction.text.startswith("@")
    if not always and not instruction.leaves and at + 1 < len(code):
        yield at + 1


def _reachable(successors: Mapping[int, Sequence[int]], goal: int, *, without: int) -> bool:
    """Whether the kernel's first instruction leads to ``goal`` by a path around ``without``."""
    if without == 0:
        return False
    seen, waiting = {0}, [0]
    while waiting:
        new = set(successors[waiting.pop()]) - seen - {without}
        if goal in new:
            return True
        seen |= new
        waiting += new
    return False
