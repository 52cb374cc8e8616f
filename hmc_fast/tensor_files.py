"""Tensors in safetensors files, with what is said of them; nothing is ever unpickled."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hmc_fast.errors import UserError
from hmc_fast.files import write_atomically


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically; raises :class:`UserError` where the disk refuses."""

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # it wraps the system's errors
            raise OSError(str(error)) from None

    write_atomically(path, write)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, which is never unpickled.

    Raises :class:`UserError` where the file is missing, truncated or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: {_not_safetensors(path, error)}") from None


def _not_safetensors(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "is a folder, not a safetensors file"
    with path.open("rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80" or start == b"PK\x03\x04":
        return (
            "is a pickled PyTorch file, which can run code when read and is refused; "
            "convert it to safetensors where you trust it"
        )
    return f"is not a complete safetensors file ({error}); write or copy it again"
