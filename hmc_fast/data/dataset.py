"""PyTorch datasets of films, reproducible sample by sample."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from hmc_fast.data.cases import Case
from hmc_fast.data.film import read_film
from hmc_fast.data.preprocessing import Preprocessing


class FilmCache:
    """Resized films in memory, each file read once, with a digest of its pixels."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self._films: dict[Path, tuple[Tensor, str]] = {}

    def image(self, path: Path) -> Tensor:
        """``[1, height, width]`` in 0…1, fp32."""
        return self._load(path)[0]

    def digest(self, path: Path) -> str:
        """SHA-256 of the decoded full-size pixels, the same for PGM and PNG of one film."""
        return self._load(path)[1]

    def _load(self, path: Path) -> tuple[Tensor, str]:
        if path not in self._films:
            film = read_film(path)
            digest = hashlib.sha256(film.tobytes()).hexdigest()
            self._films[path] = (self.preprocessing.resize(film), digest)
        return self._films[path]


class FilmDataset(Dataset[tuple[Tensor, int]]):
    """Samples ``(image [3, H, W], class)``.

    Args:
        cases: films, in the order of the indices.
        labels: their classes.
        cache: where resized films come from.
        augmentation_seed: None for the films as they are; else random flips, rotations, shifts and
            scales drawn from this seed and the sample's index alone.
    """

    def __init__(
        self,
        cases: list[Case],
        labels: list[int],
        cache: FilmCache,
        augmentation_seed: int | None = None,
    ) -> None:
        self.cases = cases
        self.labels = labels
        self._cache = cache
        self._augmentation_seed = augmentation_seed
        self._augment = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomAffine(
                    degrees=15,
                    translate=(0.05, 0.05),
                    scale=(0.9, 1.1),
                    interpolation=v2.InterpolationMode.BILINEAR,
                ),
            ]
        )

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self._cache.image(self.cases[index].path)
        if self._augmentation_seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(self._augmentation_seed, index))
                image = self._augment(image)
        return self._cache.preprocessing.normalise(image), self.labels[index]


def derive_seed(*parts: int) -> int:
    """A seed that depends on all of ``parts``, the same on every machine."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
