"""Where a film's pixels lie in the model's input, and back."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Box(NamedTuple):
    """A part of a film: rows ``top`` to ``bottom``, columns ``left`` to ``right``.

    ``mirrored`` says that it is turned so that its right side comes left.
    """

    top: int
    bottom: int
    left: int
    right: int
    mirrored: bool


@dataclass(frozen=True)
class Frame:
    """A box of a film ``[film_rows, film_columns]`` in an image ``[height, width]``.

    The box, times ``scale``, begins ``above`` pixels below the image's upper edge and ``before``
    pixels right of its left edge; what it leaves free is black. Positions are pixel centres,
    counted from the upper left. ``breast_found`` is False where a breast was looked for and none
    was told from the ground, so that the whole film is shown.
    """

    film_rows: int
    film_columns: int
    box: Box
    scale: float
    above: float
    before: float
    height: int
    width: int
    breast_found: bool = True

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Frame":
        """Raises ``TypeError`` or ``KeyError`` for values of another kind."""
        return cls(**{**values, "box": Box(*values["box"])})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "box": list(self.box)}

    def to_image(self, row: float, column: float) -> tuple[float, float]:
        """Row and column of the image for a place on the film."""
        across = self.box.right - 1 - column if self.box.mirrored else column - self.box.left
        return (
            (row - self.box.top + 0.5) * self.scale + self.above - 0.5,
            (across + 0.5) * self.scale + self.before - 0.5,
        )

    def to_film(self, row: float, column: float) -> tuple[float, float]:
        """Row and column of the film for a place in the image; undoes :meth:`to_image`."""
        across = (column + 0.5 - self.before) / self.scale - 0.5
        return (
            (row + 0.5 - self.above) / self.scale - 0.5 + self.box.top,
            self.box.right - 1 - across if self.box.mirrored else across + self.box.left,
        )

    def circle(self, x: float, y: float, radius: float) -> tuple[float, float, float]:
        """MIAS's circle (y counted upwards from the lowest row) as row, column, radius here."""
        row, column = self.to_image(self.film_rows - 1 - y, x)
        return row, column, radius * self.scale
