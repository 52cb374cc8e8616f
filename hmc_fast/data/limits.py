"""How large a film may be: one budget for every reader, checked before anything is decoded."""

from pathlib import Path

from hmc_fast.errors import UserError

MAX_SIDE = 16_384
"""Largest height or width of a film that is read: twice that of a 50 µm digital mammogram."""
MAX_PIXELS = 100_000_000
"""Most pixels of a film: three times those of a 50 µm digital mammogram."""
MAX_FILE_BYTES = 2 * MAX_PIXELS + 2**26
"""Largest file, also after inflation: 16 bits a pixel, and 64 MiB for its header."""


def check_size(path: Path, rows: int, columns: int) -> None:
    """Raises :class:`UserError` where a header claims more pixels than a film has, or none."""
    if min(rows, columns) < 1:
        raise UserError(f"{path}: claims {rows}x{columns} pixels; the file is damaged")
    if max(rows, columns) > MAX_SIDE or rows * columns > MAX_PIXELS:
        raise UserError(
            f"{path}: the header claims too many pixels, {rows}x{columns} (at most {MAX_SIDE} a "
            f"side and {MAX_PIXELS // 10**6} million in all)"
        )


def check_file_size(path: Path) -> None:
    """Raises :class:`UserError` where a file is larger than any film."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(
            f"{path}: is larger than any single film (at most {MAX_FILE_BYTES // 2**20} MiB)"
        )
