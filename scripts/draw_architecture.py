"""Draw docs/architecture.svg: the stages of HMC-Net, its attention and its lesion head.

draw_architecture.py FILE.svg
"""

import sys
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 1000, 404
STYLE = """
  text { font: 18px system-ui, sans-serif; fill: #1b1f24; text-anchor: middle; }
  .small { font-size: 14.5px; fill: #57606a; }
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
    """A box with one line of text, and a smaller one below it."""

    x: int
    y: int
    width: int
    title: str
    note: str
    kind: str = "stage"
    height: int = 62

    def svg(self) -> str:
        middle = self.x + self.width // 2
        return (
            f'<rect class="{self.kind}" x="{self.x}" y="{self.y}" width="{self.width}" '
            f'height="{self.height}" rx="7"/>'
            f'<text x="{middle}" y="{self.y + 27}">{self.title}</text>'
            f'<text class="small" x="{middle}" y="{self.y + 48}">{self.note}</text>'
        )


def flow(kind: str, *points: tuple[int, int]) -> str:
    """An arrow along ``points``."""
    way = " L ".join(f"{x} {y}" for x, y in points)
    return f'<path class="{kind}" d="M {way}"/>'


BOXES = (
    Box(10, 150, 100, "film", "1024 × 640"),
    Box(140, 150, 100, "stem, C2", "stride 4"),
    Box(270, 150, 130, "C3", "stride 8, 512 ch"),
    Box(430, 150, 140, "C4", "stride 16, 1024 ch"),
    Box(600, 150, 140, "C5", "stride 32, 2048 ch"),
    Box(290, 30, 90, "HSA", "2 heads", "attention"),
    Box(455, 30, 90, "HSA", "4 heads", "attention"),
    Box(625, 30, 90, "HSA", "8 heads", "attention"),
    Box(766, 150, 124, "MSCA", "C5 asks C3, C4", "attention"),
    Box(912, 150, 80, "logits", "network's"),
    Box(430, 290, 220, "lesion head", "1×1 convolution, maximum", "head"),
    Box(770, 290, 220, "score of the film", "and of both breasts", "head"),
)
FLOWS = (
    flow("", (110, 181), (136, 181)),
    flow("", (240, 181), (266, 181)),
    flow("", (400, 181), (426, 181)),
    flow("", (570, 181), (596, 181)),
    flow("", (740, 181), (762, 181)),
    flow("", (890, 181), (908, 181)),
    *(
        arrow
        for x in (335, 500, 670)
        for arrow in (
            flow("attention-flow", (x - 15, 150), (x - 15, 96)),
            flow("attention-flow", (x + 15, 92), (x + 15, 146)),
        )
    ),
    flow("attention-flow", (335, 212), (335, 250), (815, 250), (815, 216)),
    flow("attention-flow", (480, 212), (480, 240), (795, 240), (795, 216)),
    flow("head-flow", (320, 212), (320, 321), (426, 321)),
    flow("head-flow", (530, 212), (530, 286)),
    flow("head-flow", (650, 321), (766, 321)),
    flow("", (950, 212), (950, 286)),
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
            (-28, "blue: attention; a head has queries and keys of width 64, values of width 256"),
            (-8, "orange: what the circles of lesions teach"),
        )
    )
    body = "\n".join([*(box.svg() for box in BOXES), *FLOWS, note])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="HMC-Net">\n<style>{STYLE}</style>\n<defs>{arrow}</defs>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawing(), encoding="utf-8")
