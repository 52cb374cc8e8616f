"""What is said of one film, and how it is drawn."""

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from hmc_fast import UserError, create_model
from hmc_fast.checkpoint import CheckpointMetadata, LoadedModel, OperatingPoint
from hmc_fast.data import Film, Finding, Preprocessing, read_mias, read_pixels
from hmc_fast.explain import METHODS, ScoreOptions, explain_film
from hmc_fast.explain.film import check_methods, lesion_in
from hmc_fast.explain.page import PageEntry, render_page
from hmc_fast.explain.pictures import contact_sheet, film_figure, save_png
from hmc_fast.inference import folded
from hmc_fast.reporting import png_base64

FEW = ScoreOptions(channels=4)


@pytest.fixture(scope="module")
def malignant(phantoms: list[Film]) -> Film:
    return next(film for film in phantoms if film.severity == "malignant")


@pytest.fixture(scope="module")
def normal(phantoms: list[Film]) -> Film:
    return next(film for film in phantoms if film.severity == "normal")


def test_prediction_and_maps_belong_together(loaded: LoadedModel, malignant: Film) -> None:
    found = explain_film(loaded, malignant, ["all"], score=FEW, class_name="malignant")
    image = loaded.metadata.preprocessing(read_pixels(malignant.path))
    with torch.no_grad():
        expected = loaded.model(image[None]).softmax(1)[0]
    assert found.probabilities == pytest.approx(expected.tolist(), abs=1e-6)
    assert explain_film(loaded, malignant).class_index == int(expected.argmax())
    assert [m.method for m in found.maps] == ["gradcam", "gradcam++", "scorecam"]
    assert found.scale is not None
    assert "Lesion map: hmc_net_resnet18 has no lesion head" in found.notes
    np.testing.assert_array_equal(found.image, metadata_image(loaded, malignant))
    values = found.to_json()
    for row in values["maps"]:
        assert 0 <= row["energy_in_lesion"] <= 1
        assert 0 <= row["pointing_game"] <= 1


def test_folded_batch_norms_change_no_map(loaded: LoadedModel, malignant: Film) -> None:
    """``layer4.1.conv2`` is asked for itself, so it keeps its batch norm."""
    for layer in (None, "layer4.1.conv2"):
        folding = LoadedModel(folded(loaded.model, keep=[layer] if layer else []), loaded.metadata)
        ours, expected = (
            explain_film(each, malignant, ["gradcam", "scorecam"], score=FEW, layer=layer)
            for each in (folding, loaded)
        )
        assert ours.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        for a, b in zip(ours.maps, expected.maps, strict=True):
            np.testing.assert_allclose(a.values, b.values, atol=1e-3)


def metadata_image(loaded: LoadedModel, film: Film) -> np.ndarray:
    """What the network gets of the film, before it is normalised."""
    return loaded.metadata.preprocessing.place(read_pixels(film.path))[0][0].numpy()


def test_only_maps_of_the_findings_class_are_scored(
    loaded: LoadedModel, malignant: Film, phantoms: list[Film]
) -> None:
    other = explain_film(loaded, malignant, class_name="rest")
    assert other.explained == "rest"
    assert other.outline is not None
    assert other.to_json()["maps"][0]["pointing_game"] is None
    unscored = "not scored, it speaks for rest and the annotated finding is malignant"
    assert any(unscored in note for note in other.notes)
    benign = next(film for film in phantoms if film.severity == "benign")
    for name in ("rest", "malignant"):  # "rest" is what normal films are too
        found = explain_film(loaded, benign, class_name=name)
        assert found.to_json()["maps"][0]["energy_in_lesion"] is None
    metadata = replace(
        loaded.metadata, task="benign_malignant", class_names=("benign", "malignant")
    )
    both = replace(malignant, findings=(*malignant.findings, *benign.findings))
    for name in ("benign", "malignant"):
        found = explain_film(LoadedModel(loaded.model, metadata), both, class_name=name)
        (row,) = found.to_json()["maps"]
        lesion = found.lesions[found.class_index]
        expected = found.maps[0].values[lesion].sum() / found.maps[0].values.sum()
        assert row["class"] == name
        assert row["energy_in_lesion"] == pytest.approx(expected, rel=1e-5)
    assert not np.array_equal(found.lesions[0], found.lesions[1])


def test_a_coarse_feature_map_is_said(loaded: LoadedModel, malignant: Film) -> None:
    found = explain_film(loaded, malignant, ["gradcam", "scorecam", "scale"], score=FEW)
    assert [activation.grid for activation in found.maps] == [(3, 3)] * 2
    assert sum("3×3 cells, coarser than 8×8" in note for note in found.notes) == 3
    fine = explain_film(loaded, malignant, ["gradcam"], layer="layer2")
    assert fine.maps[0].grid == (12, 12)
    assert not any("coarser" in note for note in fine.notes)


def test_a_film_without_annotation(loaded: LoadedModel, normal: Film) -> None:
    found = explain_film(loaded, normal)
    assert not found.lesions
    assert found.outline is None
    assert found.to_json()["maps"][0]["energy_in_lesion"] is None
    assert png_base64(film_figure(found))


def test_what_a_model_cannot_do_is_said(malignant: Film, loaded: LoadedModel) -> None:
    plain = LoadedModel(create_model("resnet18").eval(), loaded.metadata)
    plain = LoadedModel(plain.model, replace(loaded.metadata, model=plain.model.config))
    found = explain_film(plain, malignant, ["gradcam", "scale"])
    assert found.scale is None
    assert "Scale map: resnet18 has no multi-scale cross-attention" in found.notes
    with pytest.raises(UserError, match="resnet18 has no multi-scale cross-attention"):
        explain_film(plain, malignant, ["scale"])
    with pytest.raises(UserError, match="unknown class 'benign'; the checkpoint knows rest, mal"):
        explain_film(plain, malignant, class_name="benign")
    with pytest.raises(UserError, match="unknown method 'lime'; choose of gradcam"):
        check_methods(["gradcam", "lime"])
    assert check_methods(["scale", "gradcam", "scale"]) == ("gradcam", "scale")
    assert check_methods(["all"]) == METHODS
    torch.nn.init.constant_(plain.model.fc.weight, float("nan"))
    with pytest.raises(UserError, match="output is not finite"):
        explain_film(plain, malignant)


@pytest.mark.parametrize("shape", [(1024, 1024), (400, 300), (300, 400)])
def test_the_lesion_lands_where_the_preprocessing_puts_it(shape: tuple[int, int]) -> None:
    height, width = shape
    finding = Finding("CIRC", "malignant", x=200, y=100, radius=40)
    pixels = np.zeros(shape, np.float32)
    lesion = lesion_in(Preprocessing(96, 96), pixels, Film("f", "p", Path("f"), (finding,)))
    side = max(shape)
    rows, columns = np.nonzero(lesion)
    expected_row = (height - 1 - 100 + (side - height) // 2 + 0.5) * 96 / side - 0.5
    expected_column = (200 + (side - width) // 2 + 0.5) * 96 / side - 0.5
    assert rows.mean() == pytest.approx(expected_row, abs=0.3)
    assert columns.mean() == pytest.approx(expected_column, abs=0.3)
    assert lesion.sum() == pytest.approx(np.pi * (40 * 96 / side) ** 2, rel=0.15)


def test_framed_and_mirrored_films_keep_their_lesion(loaded: LoadedModel, malignant: Film) -> None:
    pixels = read_pixels(malignant.path)
    framed = Preprocessing(96, 96, crop_breast=True, face_left=True)
    upright = lesion_in(framed, pixels, malignant)
    picture = framed.place(pixels)[0][0].numpy()
    assert picture[upright].max() == picture.max()
    finding = malignant.findings[0]
    mirrored = replace(malignant, findings=(replace(finding, x=pixels.shape[1] - 1 - finding.x),))
    np.testing.assert_array_equal(
        lesion_in(framed, np.ascontiguousarray(pixels[:, ::-1]), mirrored), upright
    )


def test_a_threshold_that_predict_decides_by_is_said(loaded: LoadedModel, normal: Film) -> None:
    point = OperatingPoint(0.25, 0.9, 0.92, 0.6, 100)
    metadata = replace(loaded.metadata, operating_point=point)
    notes = explain_film(LoadedModel(loaded.model, metadata), normal).notes
    assert any("threshold, 0.250 for malignant" in note for note in notes)


def test_averaged_flips_are_said(loaded: LoadedModel, malignant: Film) -> None:
    preprocessing = replace(loaded.metadata.preprocessing, average_flips=True)
    metadata = replace(loaded.metadata, preprocessing=preprocessing)
    found = explain_film(LoadedModel(loaded.model, metadata), malignant)
    image = preprocessing(read_pixels(malignant.path))
    with torch.no_grad():
        logits = (loaded.model(image[None]) + loaded.model(image.flip(-1)[None])) / 2
    assert found.probabilities == pytest.approx(logits.softmax(1)[0].tolist(), abs=1e-6)
    assert found.notes[0] == (
        "the prediction averages the film and its mirror image, the maps do not"
    )


def test_a_lesion_smaller_than_a_pixel_keeps_one() -> None:
    finding = Finding("CALC", "malignant", x=500, y=500, radius=2)
    film = Film("f", "p", Path("f"), (finding,))
    lesion = lesion_in(Preprocessing(32, 32), np.zeros((1024, 1024), np.float32), film)
    assert lesion is not None
    assert 1 <= lesion.sum() <= 4


def test_pictures_show_film_lesion_and_marks(
    loaded: LoadedModel, malignant: Film, normal: Film, tmp_path: Path
) -> None:
    found = explain_film(loaded, malignant, ["gradcam", "scale"])
    figure = film_figure(found)
    titles = [axis.get_title() for axis in figure.axes]
    assert f"Grad-CAM for “{found.explained}”" in titles
    assert any(title.startswith("Scale map: C3 ") for title in titles)
    assert malignant.film_id in figure.get_suptitle()
    assert f"{100 * max(found.probabilities):.1f} %" in figure.get_suptitle()
    assert "annotated malignant SPIC" in figure.get_suptitle()
    save_png(figure, tmp_path / "film.png")
    drawn = matplotlib.image.imread(tmp_path / "film.png")[..., :3]
    lesion_colour = np.abs(drawn - np.array([0x35, 0xE0, 0xD0]) / 255).max(-1) < 0.02
    assert lesion_colour.sum() > 100
    flat = replace(found.maps[0], values=np.zeros_like(found.maps[0].values), note="flat: so")
    marked = film_figure(replace(found, maps=(flat,), scale=None))
    texts = [text.get_text() for axis in marked.axes for text in axis.texts]
    assert texts == ["map is\nflat:\nso"] * 2
    sheet = contact_sheet([found, explain_film(loaded, normal, ["gradcam", "scale"])])
    assert len(sheet.axes) == 6 + 2  # a bar for each of the two maps
    assert [axis.get_xlabel() for axis in sheet.axes[6:]] == [
        "evidence, relative to the film's maximum",
        "share of C3 (grey: 80 %, by token count)",
    ]


def test_the_film_is_shown_once_as_the_network_got_it(loaded: LoadedModel, malignant: Film) -> None:
    found = explain_film(loaded, malignant, ["gradcam", "scorecam", "scale"], score=FEW)
    figure = film_figure(found)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles.count("film as the network got it, 96×96") == 1
    (drawn,) = figure.axes[0].images
    np.testing.assert_array_equal(drawn.get_array(), found.image)
    assert found.image.shape == (96, 96)
    assert not figure.axes[3].images


def test_overlays_are_as_opaque_as_the_evidence_is_strong(
    loaded: LoadedModel, malignant: Film
) -> None:
    found = explain_film(loaded, malignant, ["gradcam", "scale"])
    values = np.linspace(0, 1, found.image.size, dtype=np.float32).reshape(found.image.shape)
    lesions = replace(found.maps[0], method="lesions", values=values)
    figure = film_figure(replace(found, maps=(found.maps[0], lesions)))
    cam, lesion, scale = (figure.axes[row * 3 + 2].images[1].get_alpha() for row in range(3))
    np.testing.assert_allclose(cam, 0.55 * found.maps[0].values, atol=1e-6)
    assert not lesion[values <= 0.5].any()  # nothing speaks for a lesion there
    assert lesion.max() == pytest.approx(0.55)
    assert found.scale is not None
    distance = np.abs(found.scale.fine - found.scale.token_shares["C3"])
    assert scale[np.unravel_index(distance.argmax(), distance.shape)] == scale.max()
    assert np.all(np.diff(scale.ravel()[np.argsort(distance.ravel())]) >= -1e-6)


def test_the_page_is_self_contained(loaded: LoadedModel, malignant: Film, normal: Film) -> None:
    odd = replace(malignant, film_id="<script>alert(1)</script>")
    entries = [
        PageEntry(found := explain_film(loaded, film), png_base64(film_figure(found)))
        for film in (odd, normal)
    ]
    page = render_page("Two films", ["a fact"], entries)
    assert page.count("data:image/png;base64,") == 2
    assert "http://" not in page
    assert "https://" not in page
    assert "<script>" not in page
    assert "no annotated lesion" in page
    assert "Research software, not a medical device" in page


@pytest.mark.real_data
def test_a_real_malignant_film_on_a_real_trunk(real_data: Path) -> None:
    trunk = real_data / "weights" / "resnet50_v1_imagenet_fp16_backbone.safetensors"
    model = create_model("hmc_net", weights=trunk).eval()
    metadata = CheckpointMetadata(
        model.config, "malignant", ("rest", "malignant"), Preprocessing.square(224), {}, {}
    )
    film = next(c for c in read_mias(real_data / "mias") if c.film_id == "mdb184")
    found = explain_film(
        LoadedModel(model, metadata), film, ["all"], class_name="malignant", score=FEW
    )
    # The circle of mdb184 has its centre at x 352, y 624 from the bottom, and a radius of 114.
    rows, columns = np.nonzero(found.lesions[1])
    assert rows.mean() == pytest.approx((1023 - 624) * 224 / 1024, abs=1)
    assert columns.mean() == pytest.approx(352 * 224 / 1024, abs=1)
    for row in found.to_json()["maps"]:
        assert row["note"] is None
        assert 0 <= row["energy_in_lesion"] < 1
    maps = [found.maps[i].values for i in range(3)]
    assert len({values.tobytes() for values in maps}) == 3
    np.testing.assert_allclose(found.scale.shares.sum(0), 1, atol=1e-6)
