"""Triton Inference Server with our repository loaded; its ONNX Runtime backend is a stand-in."""

import csv
import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pytest
import torch
from dicom_files import mammogram, save
from tritonserver import Server

from hmc_fast import UserError, load_model
from hmc_fast.cli.app import run
from hmc_fast.data import Film, film_image
from hmc_fast.serving import FilmClient, FilmRefusedError

pytestmark = pytest.mark.systems

AGREEMENT = 1e-6
REQUESTS = 300
"""Of the load in the quick variant; the exhaustive one sends 10,000."""
GROWTH_MIB = 64


@pytest.fixture(scope="module")
def films(phantoms: list[Film], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Phantoms as PGM and one as DICOM."""
    stored = np.random.default_rng(0).integers(0, 4096, (90, 70), dtype=np.uint16)
    dicom = save(mammogram(stored), tmp_path_factory.mktemp("films") / "film.dcm")
    return [*(film.path for film in phantoms[:5]), dicom]


def expected(checkpoint: Path, film: Path) -> list[float]:
    model, metadata = load_model(checkpoint)
    image = metadata.preprocessing.normalise(film_image(film, metadata.preprocessing).image)
    with torch.no_grad():
        probabilities: list[float] = model.eval()(image[None]).double().softmax(1)[0].tolist()
    return probabilities


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_films_get_the_scores_of_predict(server: Server, films: list[Path], protocol: str) -> None:
    with FilmClient(getattr(server, protocol)) as client:
        assert client.service.class_names == ("rest", "malignant")
        for film in films:
            scores = client.probabilities(film)
            assert scores == pytest.approx(expected(server.checkpoint, film), abs=AGREEMENT)
            assert client.probabilities(film.read_bytes()) == scores


def test_many_at_once_are_batched_and_each_gets_its_own(server: Server, films: list[Path]) -> None:
    alone = {film: expected(server.checkpoint, film) for film in films}

    def ask(film: Path) -> None:
        with FilmClient(server.grpc) as client:
            assert client.probabilities(film) == pytest.approx(alone[film], abs=AGREEMENT)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, films * 6))
    with urlopen(f"{server.http}/v2/models/hmc_film/stats", timeout=10) as answer:  # noqa: S310  # our own server
        (stats,) = json.load(answer)["model_stats"]
    assert stats["execution_count"] < stats["inference_count"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(
    "content", [b"", b"no film", b"P5 4096 4096 65535\n", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_film_is_refused_in_a_line(
    server: Server, content: bytes, protocol: str
) -> None:
    with FilmClient(getattr(server, protocol)) as client:
        with pytest.raises(FilmRefusedError) as refused:
            client.probabilities(content)
        assert "\n" not in str(refused.value)
        assert "/proc" not in str(refused.value)


def test_the_status_of_a_refusal_is_the_clients_fault(server: Server) -> None:
    body = json.dumps(
        {"inputs": [{"name": "film", "shape": [1, 3], "datatype": "UINT8", "data": [1, 2, 3]}]}
    ).encode()
    request = Request(f"{server.http}/v2/models/hmc_film/infer", body)  # noqa: S310  # our own server
    with pytest.raises(HTTPError) as refused:
        urlopen(request, timeout=30)  # noqa: S310  # as above
    assert refused.value.code == 400


@pytest.mark.parametrize(
    ("address", "model", "message"),
    [
        (lambda s: "http://127.0.0.1:9", "hmc_film", "no answer that can be used"),
        (lambda s: "grpc://127.0.0.1:9", "hmc_film", "no answer that can be used"),
        (lambda s: s.http, "other", "missing or not ready"),
        (lambda s: s.grpc, "other", "missing or not ready"),
        (lambda s: s.http, "hmc_net_resnet18", "is no film model of hmc-fast"),
        (lambda s: "ftp://x", "hmc_film", "needs http://host:port"),
    ],
)
def test_a_server_that_cannot_is_one_line(
    server: Server, address: Callable[[Server], str], model: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        FilmClient(address(server), model=model, timeout_s=5)
    assert "\n" not in str(error.value)


def test_the_command_writes_predicts_table(
    server: Server, films: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no film")
    names = [str(film) for film in [*films, broken]]
    out, other = tmp_path / "scores.csv", tmp_path / "predicted.csv"
    assert run(["score", *names, "--server", server.http, "--out", str(out)]) == 1
    predict = ["predict", *names, "--checkpoint", str(server.checkpoint), "--out", str(other)]
    assert run(predict) == 1
    ours, theirs = (list(csv.DictReader(path.open())) for path in (out, other))
    assert [row["file"] for row in ours] == [row["file"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert bool(a["error"]) == bool(b["error"])
        if not a["error"]:
            assert float(a["probability_malignant"]) == pytest.approx(
                float(b["probability_malignant"]), abs=AGREEMENT
            )


def resident_mib(process: int) -> float:
    root = psutil.Process(process)
    everybody = [root, *root.children(recursive=True)]
    return sum(each.memory_info().rss for each in everybody) / 2**20


def load(server: Server, films: list[Path], requests: int) -> None:
    """Every seventh request is garbage; the others get their answers, whatever is beside them."""
    contents = [(film.read_bytes(), expected(server.checkpoint, film)) for film in films]
    draw = random.Random(0)
    garbage = [draw.randbytes(draw.randrange(1, 3000)) for _ in range(20)]

    def ask(numbers: range) -> int:
        answered = 0
        with FilmClient(server.grpc) as client:
            for number in numbers:
                if number % 7 == 3:
                    with pytest.raises(FilmRefusedError):
                        client.probabilities(garbage[number % len(garbage)])
                else:
                    content, scores = contents[number % len(contents)]
                    assert client.probabilities(content) == pytest.approx(scores, abs=AGREEMENT)
                answered += 1
        return answered

    with ThreadPoolExecutor(4) as pool:
        shares = [range(start, requests, 4) for start in range(4)]
        assert sum(pool.map(ask, shares)) == requests


@pytest.mark.parametrize("requests", [REQUESTS, pytest.param(10_000, marks=pytest.mark.exhaustive)])
def test_a_load_with_garbage_in_it_leaks_nothing(
    server: Server, films: list[Path], requests: int
) -> None:
    load(server, films, 100)
    before = resident_mib(server.process)
    start = time.perf_counter()
    load(server, films, requests)
    seconds, after = time.perf_counter() - start, resident_mib(server.process)
    print(f"{requests} requests in {seconds:.0f} s; MiB before {before:.0f}, after {after:.0f}")
    assert after < before + GROWTH_MIB
