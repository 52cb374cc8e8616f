"""The cache of features: keyed by what decides its content, resumed, bounded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hmc_fast import UserError
from hmc_fast.data import Film, read_pixels
from hmc_fast.data.native import NativePreprocessing
from hmc_fast.models import HMCNet, create_model
from hmc_fast.models.lesion_head import lesion_features
from hmc_fast.training.features import cache_features, read_features, trunk_digest

NATIVE = NativePreprocessing(film_side=64)
SQUARE = NativePreprocessing(64, 64, 64)


def trunk(seed: int = 0) -> HMCNet:
    torch.manual_seed(seed)
    net = create_model("resnet18")
    assert isinstance(net, HMCNet)
    return net


@pytest.fixture
def films(phantoms: list[Film]) -> list[Path]:
    return [case.path for case in phantoms[:5]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_file_holds_what_the_trunk_sees(films: list[Path], tmp_path: Path) -> None:
    net = trunk()
    files = cache_features(films, net, NATIVE, tmp_path)
    for film, file in zip(films, files, strict=True):
        image, frame = NATIVE(read_pixels(film))
        features = read_features(file)
        assert features.frame == frame
        assert features.breast.shape == (frame.height // 16, frame.width // 16)
        assert features.breast.any()
        with torch.inference_mode():
            expected = lesion_features(*net.stages(NATIVE.normalise(image)[None])[:2])[0]
        assert features.cells.dtype == torch.float16
        torch.testing.assert_close(features.cells.float(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_killed_run_ends_like_one_that_was_not(
    films: list[Path], tmp_path: Path, batch_size: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ready: list[int] = []
    cache_features(films, trunk(), SQUARE, whole, batch_size=batch_size, on_film=ready.append)
    assert sum(ready) == len(films)

    def kill(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_features(films, trunk(), SQUARE, killed, batch_size=batch_size, on_film=kill)
    assert len(contents(killed)) == batch_size
    lost = next(killed.iterdir())
    lost.unlink()
    cache_features(films, trunk(), SQUARE, killed, batch_size=batch_size)
    assert contents(killed) == contents(whole)


def test_films_that_are_there_are_not_computed_again(
    films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = trunk()
    files = cache_features(films, net, NATIVE, tmp_path)
    monkeypatch.setattr(net, "early_stages", lambda x: pytest.fail("computed again"))
    assert cache_features(films[::-1], net, NATIVE, tmp_path) == files[::-1]


def test_pixels_weights_and_preprocessing_make_the_key(films: list[Path], tmp_path: Path) -> None:
    (file,) = cache_features(films[:1], trunk(), NATIVE, tmp_path)
    png = tmp_path / "same.png"
    with Image.open(films[0]) as picture:
        picture.save(png)
    assert cache_features([png], trunk(), NATIVE, tmp_path) == [file]
    assert cache_features(films[:1], trunk(), SQUARE, tmp_path) != [file]
    assert cache_features(films[:1], trunk(1), NATIVE, tmp_path) != [file]
    assert cache_features(films[1:2], trunk(), NATIVE, tmp_path) != [file]


def test_the_trunk_is_known_by_what_c3_and_c4_depend_on() -> None:
    net = trunk()
    digest = trunk_digest(net)
    with torch.no_grad():
        net.layer4[0].conv1.weight.zero_()
        net.fc.bias.zero_()
    assert trunk_digest(net) == digest
    with torch.no_grad():
        net.layer3[1].bn2.running_mean += 1e-3
    assert trunk_digest(net) != digest
    with torch.device("meta"):
        pair = [HMCNet(hsa_stages=(), msca=False, stride_in_1x1=v1) for v1 in (False, True)]
    v15, v1 = (net.to_empty(device="cpu") for net in pair)
    v1.load_state_dict(v15.state_dict())
    assert trunk_digest(v15) != trunk_digest(v1)


def test_the_folder_is_bounded(films: list[Path], tmp_path: Path) -> None:
    (file,) = cache_features(films[:1], trunk(), NATIVE, tmp_path)
    limit = 1.5 * file.stat().st_size / 2**30
    with pytest.raises(UserError, match=r"would exceed the limit of .* GiB; raise the limit"):
        cache_features(films, trunk(), NATIVE, tmp_path, limit_gib=limit)
    assert list(tmp_path.iterdir()) == [file]


def test_a_black_film_and_a_damaged_file_are_named(films: list[Path], tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(black)
    with pytest.raises(UserError, match=r"black\.png: .*shows no breast"):
        cache_features([films[0], black], trunk(), NATIVE, tmp_path)
    (file,) = cache_features(films[:1], trunk(), NATIVE, tmp_path)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"not a complete safetensors file"):
        read_features(file)
