"""Draw docs/architecture.svg: the stages of HMC-Net, its attention and its lesion head.

draw_architecture.py FILE.svg
"""

import sys
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 1000, 466
# Fonts are large for the picture's width: a phone shows it at a third of its size.
STYLE = """
  text { font: 22px system-ui, sans-serif; fill: #1b1f24; text-anchor: middle; }
  .small { font-size: 18px; fill: #57606a; }
  rect { fill: #eef2f7; stroke: #57606a; }
  .attention { fill: #cfe6f7; stroke: #0072b2; }
  .head { fill: #fbe5c8; stroke: #b35900; }
  path { fill: none; stroke: #57606a; stroke-width: 1.6; marker-end: url(#arrow); }
  .head-flow { stroke: #b35900; } .attention-flow { stroke: #0072b2; }
  marker path { fill: #57606a; stroke: none; marker-end: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9da7b3; }
    rect { fill: #21262d; stroke: #9da7b3; }
    .attention { fill: #0b3a57; stroke: #56b4e9; } .head { fill: #4a2f0b; stroke: #e69f00; }
    path { stroke: #9da7b3; } .head-flow { stroke: #e69f00; } .attention-flow { stroke: #56b4e9; }
    marker path { fill: #9da7b3; }
  }
"""


@dataclass(frozen=True)
class Box:
    """A box with one line of text, and smaller ones below it."""

    x: int
    y: int
    width: int
    title: str
    notes: tuple[str, ...]
    kind: str = "stage"

    @property
    def height(self) -> int:
        return 42 + 21 * len(self.notes)

    def svg(self) -> str:
        middle = self.x + self.width // 2
        notes = "".join(
            f'<text class="small" x="{middle}" y="{self.y + 51 + 21 * line}">{note}</text>'
            for line, note in enumerate(self.notes)
        )
        return (
            f'<rect class="{self.kind}" x="{self.x}" y="{self.y}" width="{self.width}" '
            f'height="{self.height}" rx="7"/>'
            f'<text x="{middle}" y="{self.y + 29}">{self.title}</text>{notes}'
        )


def flow(kind: str, *points: tuple[int, int]) -> str:
    """An arrow along ``points``."""
    way = " L ".join(f"{x} {y}" for x, y in points)
    return f'<path class="{kind}" d="M {way}"/>'


BOXES = (
    Box(10, 150, 100, "film", ("1024 ×", "640 pixels")),
    Box(140, 150, 100, "C2", ("with stem", "stride 4")),
    Box(270, 150, 130, "C3", ("stride 8", "512 ch")),
    Box(430, 150, 140, "C4", ("stride 16", "1024 ch")),
    Box(600, 150, 140, "C5", ("stride 32", "2048 ch")),
    Box(280, 30, 110, "HSA", ("2 heads",), "attention"),
    Box(445, 30, 110, "HSA", ("4 heads",), "attention"),
    Box(615, 30, 110, "HSA", ("8 heads",), "attention"),
    Box(766, 150, 124, "MSCA", ("C5 asks", "C3 and C4"), "attention"),
    Box(912, 150, 80, "logits", ("of the", "network")),
    Box(430, 314, 220, "lesion head", ("1×1 convolution", "and maximum"), "head"),
    Box(770, 314, 220, "score of the film", ("compared with that", "of the other breast"), "head"),
)
FLOWS = (
    flow("", (110, 192), (136, 192)),
    flow("", (240, 192), (266, 192)),
    flow("", (400, 192), (426, 192)),
    flow("", (570, 192), (596, 192)),
    flow("", (740, 192), (762, 192)),
    flow("", (890, 192), (908, 192)),
    *(
        arrow
        for x in (335, 500, 670)
        for arrow in (
            flow("attention-flow", (x - 15, 150), (x - 15, 97)),
            flow("attention-flow", (x + 15, 93), (x + 15, 146)),
        )
    ),
    flow("attention-flow", (335, 234), (335, 274), (815, 274), (815, 238)),
    flow("attention-flow", (480, 234), (480, 262), (795, 262), (795, 238)),
    flow("head-flow", (320, 234), (320, 356), (426, 356)),
    flow("head-flow", (530, 234), (530, 310)),
    flow("head-flow", (650, 356), (766, 356)),
    flow("", (950, 234), (950, 310)),
)


def drawing() -> str:
    """The whole picture."""
    arrow = (
        '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M 0 0 L 8 4 L 0 8 z"/></marker>'
    )
    note = "".join(
        f'<text class="small" x="{WIDTH // 2}" y="{HEIGHT + y}">{line}</text>'
        for y, line in (
            (-34, "blue: attention; a head has queries and keys of width 64, values of width 256"),
            (-10, "orange: what the circles of lesions teach"),
        )
    )
    body = "\n".join([*(box.svg() for box in BOXES), *FLOWS, note])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="HMC-Net">\n<style>{STYLE}</style>\n<defs>{arrow}</defs>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawing(), encoding="utf-8")
