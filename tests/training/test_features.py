"""The cache of features: keyed by what decides its content, resumed, bounded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hmc_fast import UserError
from hmc_fast.data import Film, FilmCache, Preprocessing
from hmc_fast.models import HMCNet, create_model
from hmc_fast.models.lesion_head import lesion_features
from hmc_fast.training.features import cache_features, read_features, trunk_digest

NATIVE = Preprocessing(64, 64, native=True)
SQUARE = Preprocessing(64, 64)


def trunk(seed: int = 0, name: str = "resnet18") -> HMCNet:
    torch.manual_seed(seed)
    net = create_model(name)
    assert isinstance(net, HMCNet)
    return net


@pytest.fixture
def films(phantoms: list[Film]) -> list[Path]:
    return [case.path for case in phantoms[:5]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def features_of(
    films: Sequence[Path],
    net: HMCNet,
    preprocessing: Preprocessing,
    folder: Path,
    **options: Any,
) -> list[Path]:
    return cache_features(films, net, FilmCache(preprocessing), folder, **options)


@pytest.mark.parametrize("name", ["resnet18", "hmc_net_resnet18_lesions"])
def test_the_file_holds_what_the_model_sees(films: list[Path], tmp_path: Path, name: str) -> None:
    net, images = trunk(name=name).eval(), FilmCache(NATIVE)
    files = cache_features(films, net, images, tmp_path)
    for film, file in zip(films, files, strict=True):
        features, frame = read_features(file), images.frame(film)
        assert features.frame == frame
        assert features.breast.shape == (frame.height // 16, frame.width // 16)
        assert features.breast.any()
        with torch.inference_mode():
            stages = net.stages(NATIVE.normalise(images.image(film))[None])
        expected = lesion_features(*stages[:2])[0]
        assert features.cells.dtype == torch.float16
        torch.testing.assert_close(features.cells.float(), expected, atol=2e-3, rtol=2e-3)


def test_attention_that_has_learned_is_refused(films: list[Path], tmp_path: Path) -> None:
    net = trunk(name="resnet18_hsa")
    with torch.no_grad():
        net.hsa["C4"].gamma[3] = 0.1
    with pytest.raises(ValueError, match="attention has learned"):
        features_of(films[:1], net, NATIVE, tmp_path)


def test_models_of_one_trunk_share_their_features(films: list[Path], tmp_path: Path) -> None:
    plain, whole = trunk(), trunk(name="hmc_net_resnet18_lesions")
    whole.load_state_dict(plain.state_dict(), strict=False)
    files = features_of(films[:2], plain, NATIVE, tmp_path)
    assert features_of(films[:2], whole, NATIVE, tmp_path) == files


def test_a_killed_run_ends_like_one_that_was_not(films: list[Path], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ready: list[int] = []
    features_of(films, trunk(), SQUARE, whole, on_film=ready.append)
    assert sum(ready) == len(films)

    def kill(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features_of(films, trunk(), SQUARE, killed, on_film=kill)
    assert len(contents(killed)) == 1
    next(killed.iterdir()).unlink()
    features_of(films, trunk(), SQUARE, killed)
    assert contents(killed) == contents(whole)


def test_films_that_are_there_are_not_computed_again(
    films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = trunk()
    files = features_of(films, net, NATIVE, tmp_path)
    monkeypatch.setattr(HMCNet, "early_stages", lambda net, x: pytest.fail("computed again"))
    assert features_of(films[::-1], net, NATIVE, tmp_path) == files[::-1]


def test_pixels_weights_and_preprocessing_make_the_key(films: list[Path], tmp_path: Path) -> None:
    (file,) = features_of(films[:1], trunk(), NATIVE, tmp_path)
    png = tmp_path / "same.png"
    with Image.open(films[0]) as picture:
        picture.save(png)
    assert features_of([png], trunk(), NATIVE, tmp_path) == [file]
    assert features_of(films[:1], trunk(), SQUARE, tmp_path) != [file]
    assert features_of(films[:1], trunk(1), NATIVE, tmp_path) != [file]
    assert features_of(films[1:2], trunk(), NATIVE, tmp_path) != [file]


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
    (file,) = features_of(films[:1], trunk(), NATIVE, tmp_path)
    limit = 1.5 * file.stat().st_size / 2**30
    with pytest.raises(UserError, match=r"would exceed the limit of .* GiB; raise the limit"):
        features_of(films, trunk(), NATIVE, tmp_path, limit_gib=limit)
    assert list(tmp_path.iterdir()) == [file]


def test_a_black_film_and_a_damaged_file_are_named(films: list[Path], tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(black)
    with pytest.raises(UserError, match=r"black\.png: shows no picture"):
        features_of([films[0], black], trunk(), NATIVE, tmp_path)
    (file,) = features_of(films[:1], trunk(), NATIVE, tmp_path)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"not a complete safetensors file"):
        read_features(file)
