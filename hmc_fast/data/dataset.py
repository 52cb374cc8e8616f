"""PyTorch datasets of films, reproducible sample by sample."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from hmc_fast.data.films import Film
from hmc_fast.data.frame import Frame
from hmc_fast.data.lesions import crop_box, lesion_mask
from hmc_fast.data.pixels import pixel_digest, read_pixels
from hmc_fast.data.preprocessing import Preprocessing
from hmc_fast.errors import UserError


class FilmCache:
    """Resized films in memory, each file read once, with a digest of its pixels.

    DICOM images for processing are refused unless ``allow_raw``.
    """

    def __init__(self, preprocessing: Preprocessing, *, allow_raw: bool = False) -> None:
        self.preprocessing = preprocessing
        self._allow_raw = allow_raw
        self._films: dict[Path, _CachedFilm] = {}
        self._lesions: dict[Path, Tensor] = {}
        self._crops: dict[Path, Tensor] = {}

    def image(self, path: Path) -> Tensor:
        """``[1, height, width]`` in 0…1, fp32."""
        return self._load(path).image

    def digest(self, path: Path) -> str:
        """Of the full-size pixels, see :func:`hmc_fast.data.pixels.pixel_digest`."""
        return self._load(path).digest

    def frame(self, path: Path) -> Frame:
        """Where the film lies in its image."""
        return self._load(path).frame

    def lesion(self, film: Film) -> Tensor:
        """``[1, height, width]`` in 0…1, the film's lesion circles resized like its film."""
        if film.path not in self._lesions:
            loaded = self._load(film.path)
            shape = (loaded.frame.film_rows, loaded.frame.film_columns)
            mask = lesion_mask(film, shape)
            self._lesions[film.path] = self.preprocessing.resize(mask, loaded.frame)
        return self._lesions[film.path]

    def crop(self, film: Film) -> Tensor:
        """``[1, height, width]`` in 0…1: the film's :func:`crop_box`, enlarged."""
        if film.path not in self._crops:
            pixels = read_pixels(film.path, allow_raw=self._allow_raw)
            box = crop_box(film, pixels, mirrored=self._load(film.path).frame.box.mirrored)
            frame = self.preprocessing.frame_around(box, (pixels.shape[0], pixels.shape[1]))
            self._crops[film.path] = self.preprocessing.resize(pixels, frame)
        return self._crops[film.path]

    def _load(self, path: Path) -> "_CachedFilm":
        if path not in self._films:
            pixels = read_pixels(path, allow_raw=self._allow_raw)
            try:
                image, frame = self.preprocessing.place(pixels)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
            self._films[path] = _CachedFilm(image, pixel_digest(pixels), frame)
        return self._films[path]


class _CachedFilm(NamedTuple):
    image: Tensor
    digest: str
    frame: Frame


class FilmDataset(Dataset[tuple[Tensor, int]]):
    """Samples ``(image [3, H, W], class)``; a rotated copy of a film is rotated here.

    Args:
        films: films, in the order of the indices.
        labels: their classes.
        cache: where resized films come from.
        augmentation_seed: None for the films as they are; else random flips, rotations, shifts and
            scales drawn from this seed and the sample's index alone (no flips where all films face
            left).
    """

    def __init__(
        self,
        films: list[Film],
        labels: list[int],
        cache: FilmCache,
        augmentation_seed: int | None = None,
    ) -> None:
        self.films = films
        self.labels = labels
        self._cache = cache
        self._augmentation_seed = augmentation_seed
        self._augment = v2.Compose(
            [
                v2.RandomHorizontalFlip(0.0 if cache.preprocessing.all_face_left else 0.5),
                v2.RandomAffine(
                    degrees=15,
                    translate=(0.05, 0.05),
                    scale=(0.9, 1.1),
                    interpolation=v2.InterpolationMode.BILINEAR,
                ),
            ]
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """What the films went through."""
        return self._cache.preprocessing

    def __len__(self) -> int:
        return len(self.films)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.preprocessing.normalise(self.film(index)), self.labels[index]

    def film(self, index: int) -> Tensor:
        """The sample's film ``[1, H, W]`` in 0…1, before it is normalised."""
        return self._transform(self._cache.image(self.films[index].path), index)

    def _transform(self, planes: Tensor, index: int) -> Tensor:
        """Rotate and augment ``[planes, H, W]``, all planes alike."""
        rotation = self.films[index].rotation
        if rotation:
            planes = functional.rotate(planes, rotation, v2.InterpolationMode.BILINEAR)
        if self._augmentation_seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(derive_seed(self._augmentation_seed, index))
                planes = self._augment(planes)
        return planes


class LesionDataset(FilmDataset):
    """Samples ``(image [3, H, W], class, lesion [1, H, W] in 0…1)``, augmented together."""

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:  # type: ignore[override]  # one more element
        film = self.films[index]
        both = torch.cat([self._cache.image(film.path), self._cache.lesion(film)])
        both = self._transform(both, index)
        return self.preprocessing.normalise(both[:1]), self.labels[index], both[1:]


class CropDataset(FilmDataset):
    """Samples ``(image [3, H, W], class)`` whose images are crops of the films."""

    def film(self, index: int) -> Tensor:
        return self._transform(self._cache.crop(self.films[index]), index)


def derive_seed(*parts: int) -> int:
    """A seed that depends on all of ``parts``, the same on every machine."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
