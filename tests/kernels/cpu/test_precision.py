"""Products in bf16 where the processor is fast at them, and nowhere else."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hmc_fast.kernels.cpu import operators, precision


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


def problem(
    dtype: torch.dtype, queries: int = 3, lengths: tuple[int, ...] = (3,)
) -> tuple[Tensor, list[Tensor]]:
    return torch.ones(1, queries, 1, 8, dtype=dtype), [
        torch.ones(1, length, 1, 8, dtype=dtype) for length in lengths
    ]


@pytest.fixture(params=[False, True], ids=["without tiles", "with tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    monkeypatch.setattr(precision, "has_tiles", lambda: request.param)
    monkeypatch.setattr(precision, "is_wide_amd", lambda instructions: False)
    yield request.param
    assert setting() == "none"


@pytest.mark.parametrize(
    ("facts", "fast"),
    [
        ({}, False),
        ({"amx_bf16": True, "avx512_bf16": True, "cpu_name": "Intel(R) Xeon(R) 8481C"}, True),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "Intel(R) Xeon(R)"}, False),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "AMD EPYC 9R14"}, True),
        ({"amx_bf16": False, "avx512_bf16": False, "cpu_name": "AMD EPYC 7R13"}, False),
        ({"bf16": True, "architecture": "aarch64"}, False),
    ],
)
def test_which_processors_are_fast_at_bf16(
    facts: dict[str, object], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts)
    assert precision.multiplies_bf16_fast() == fast


def test_only_bf16_inputs_round_and_only_with_tiles(tiles: bool) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with precision.products_of(*problem(dtype)):
            rounds = tiles and dtype == torch.bfloat16
            assert setting() == ("bf16" if rounds else "none")
            assert precision.rounds_products(*problem(dtype)) == rounds


def test_other_fast_processors_round_without_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"avx512_bf16": True, "cpu_name": "AMD EPYC"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts)
    with precision.products_of(*problem(torch.bfloat16)):
        assert precision.rounds_products(*problem(torch.bfloat16))
        assert setting() == "none"


def test_small_problems_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_tiles", lambda: True)
    monkeypatch.setattr(precision, "LEAST_SCORES", 24)
    assert precision.rounds_products(*problem(torch.bfloat16, 4, (1, 5)))
    assert not precision.rounds_products(*problem(torch.bfloat16, 4, (5,)))


def test_the_setting_of_the_user_comes_back(tiles: bool) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    try:
        with pytest.raises(ZeroDivisionError), precision.products_of(*problem(torch.bfloat16)):
            raise ZeroDivisionError
        assert setting() == "ieee"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_exact_calls_wait_for_rounding_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_tiles", lambda: True)
    inside, leave = threading.Event(), threading.Event()
    seen: list[str] = []

    def round_for_a_while() -> None:
        with precision.products_of(*problem(torch.bfloat16)):
            inside.set()
            leave.wait(10)

    def exact() -> None:
        with precision.products_of(*problem(torch.float32)):
            seen.append(setting())

    threads = [threading.Thread(target=target) for target in (round_for_a_while, exact)]
    threads[0].start()
    assert inside.wait(10)
    with precision.products_of(*problem(torch.bfloat16)):  # the same kind runs beside it
        assert setting() == "bf16"
    threads[1].start()
    threads[1].join(0.2)
    assert not seen
    assert threads[1].is_alive()
    leave.set()
    for thread in threads:
        thread.join(10)
    assert seen == ["none"]


def test_exact_results_are_the_same_beside_rounding_threads() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 300, 2, d) for d in (64, 64, 256))
    expected, _ = operators.attention(q, k, v, 0.3)
    results: list[Tensor] = []

    def repeat(call: Callable[[], Tensor], keep: bool) -> None:
        for _ in range(30):
            result = call()
            if keep:
                results.append(result)

    low = [x.bfloat16() for x in (q, k, v)]
    threads = [
        threading.Thread(target=repeat, args=(lambda: operators.attention(*low, 0.3)[0], False)),
        threading.Thread(target=repeat, args=(lambda: operators.attention(q, k, v, 0.3)[0], True)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 30
    assert all(torch.equal(result, expected) for result in results)
