"""The compiled passes: within the error budget, in memory's bounds, and never in the way."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hmc_fast.kernels import attention, multi_scale_attention
from hmc_fast.kernels.cpu.compiled import attention as compiled
from hmc_fast.kernels.cpu.compiled import library
from hmc_fast.kernels.testing import DrawnProblem, assert_parity, draw_problems

DTYPES = [d for d in compiled.INSTRUCTIONS if compiled.why_not(d) is None]
needs_it = pytest.mark.skipif(
    not DTYPES, reason=f"no compiled attention here: {compiled.why_not(torch.float32)}"
)
PROBLEMS = draw_problems(seed=9, count=66)
Run = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _compiled(_by_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes what the other tests of this folder do."""
    monkeypatch.setattr(compiled, "takes", TAKES)


TAKES = compiled.takes


def forget() -> None:
    for found in (compiled.why_not, library.function, library._library):
        found.cache_clear()


@pytest.fixture
def _anew() -> Iterator[None]:
    """As a process that has not asked for it yet."""
    forget()
    yield
    forget()


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def inputs(
    dtype: torch.dtype,
    queries: int = 70,
    lengths: tuple[int, ...] = (1300, 513),
    widths: tuple[int, ...] = (256, 40),
    batch: int = 2,
    heads: int = 3,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def drawn(tokens: int, width: int) -> Tensor:
        return torch.randn(batch, tokens, heads, width, generator=generator).to(dtype)

    ks = [drawn(n, 64) for n in lengths]
    vs = [drawn(n, d) for n, d in zip(lengths, widths, strict=True)]
    return drawn(queries, 64), ks, vs


@needs_it
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_drawn_problems(problem: DrawnProblem, dtype: torch.dtype) -> None:
    q, ks, vs = problem.tensors(dtype)
    assert compiled.takes(q, ks, vs) or q.shape[3] % 2
    assert_parity(q, ks, vs, scale=problem.shape.scale, backend="cpu")


@needs_it
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("queries", "lengths"),
    [(1, (1025,)), (513, (512,)), (65, (511, 1, 1030)), (129, (2049,)), (8193, (17, 600))],
    ids=str,
)
def test_many_blocks(queries: int, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    q, ks, vs = inputs(dtype, queries, lengths, (256, 48, 18)[: len(lengths)], 1, 2)
    assert compiled.takes_backward(q, ks, vs)
    assert_parity(q, ks, vs, scale=0.125, backend="cpu")


@needs_it
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_from_minus_to_plus_80(order: str, sign: int, dtype: torch.dtype) -> None:
    logits = torch.linspace(-80, 80, 1500)
    if order == "mixed":
        logits = logits[torch.randperm(1500, generator=torch.Generator().manual_seed(1))]
    q, ks, vs = inputs(dtype, 5, (1500, 33), (64, 32))
    q = torch.zeros_like(q)
    q[..., 0] = 1
    ks[0][..., 0] = (logits if order != "falling" else logits.flip(0))[None, :, None].to(dtype)
    assert_parity(q, ks, vs, scale=float(sign), backend="cpu")


Results = tuple[list[Tensor], Tensor, Tensor, list[Tensor]]


def both_passes(q: Tensor, ks: list[Tensor], vs: list[Tensor], backend: str = "cpu") -> Results:
    """Outs, lse, weights, and the gradients of ``q``, ``ks`` and ``vs`` through all of them."""
    leaves = [x.detach().requires_grad_() for x in (q, *ks, *vs)]
    ks, vs = leaves[1 : 1 + len(ks)], leaves[1 + len(ks) :]
    outs, lse, weights = multi_scale_attention(leaves[0], ks, vs, backend=backend)
    loss = sum((out.float().square() + out).sum() for out in outs)
    loss = loss + lse.sum() + weights.square().sum()
    gradients = torch.autograd.grad(loss, leaves)
    return [out.detach() for out in outs], lse.detach(), weights.detach(), list(gradients)


@needs_it
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_depend_neither_on_the_batch_nor_on_threads_or_strides(dtype: torch.dtype) -> None:
    q, ks, vs = inputs(dtype, queries=300)
    outs, lse, weights, gradients = both_passes(q, ks, vs)

    def is_same(found: Results) -> bool:
        pairs = zip([*outs, *gradients], [*found[0], *found[3]], strict=True)
        assert torch.equal(lse, found[1])
        assert torch.equal(weights, found[2])
        return all(torch.equal(a, b) for a, b in pairs)

    alone = both_passes(q[1:, :, 1:2], [k[1:, :, 1:2] for k in ks], [v[1:, :, 1:2] for v in vs])
    assert torch.equal(lse[1:, 1:2], alone[1])
    assert torch.equal(weights[1:, 1:2], alone[2])
    for whole, own in zip([*outs, *gradients], [*alone[0], *alone[3]], strict=True):
        assert torch.equal(whole[1:, :, 1:2], own)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, *ks, *vs)]
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert is_same(both_passes(turned[0], turned[1:3], turned[3:]))
    finally:
        torch.set_num_threads(threads)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: is_same(both_passes(q, ks, vs)), "abcd"))


@needs_it
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_sums_which_have_no_memory_of_their_own(dtype: torch.dtype) -> None:
    q, (k, _), (v, _) = inputs(dtype)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    expanded = torch.autograd.grad(attention(*leaves, backend="cpu")[0].sum(), leaves)
    out, _ = attention(*leaves, backend="cpu")
    assert all(map(torch.equal, expanded, torch.autograd.grad(out, leaves, torch.ones_like(out))))


@needs_it
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_source_far_below_the_others_keeps_its_gradients(dtype: torch.dtype) -> None:
    """Its probabilities are about 2^-100: nothing beside the other's, but all that it has."""
    q, ks, vs = inputs(dtype, 5, (30, 33), (64, 32))
    q, ks[0], ks[1] = torch.zeros_like(q), torch.zeros_like(ks[0]), torch.zeros_like(ks[1])
    q[..., 0] = 1
    ks[1][..., 0] = -69 * 8  # times 1 / 8, of the 64 dimensions
    found = both_passes(q, ks, vs)[3]
    exact = both_passes(
        q.double(), [k.double() for k in ks], [v.double() for v in vs], "reference"
    )[3]
    assert 0 < exact[2].abs().max() < 2e-28
    assert 0 < exact[4].abs().max() < 2e-28
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(
            a.double(), b, rtol=tolerance, atol=tolerance * float(b.abs().max())
        )


@needs_it
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_of_minus_infinity_leave_the_rest_to_others(dtype: torch.dtype) -> None:
    q, ks, vs = inputs(dtype, 5, (600, 33), (64, 32))
    q[..., 0], ks[1][..., 0] = 1, 0
    ks[0][..., 0] = -torch.inf
    outs, lse, weights = multi_scale_attention(q, ks, vs, backend="cpu")
    out, lse_alone = attention(q, ks[1], vs[1], backend="cpu")
    assert torch.equal(outs[0], torch.zeros_like(outs[0]))
    assert torch.equal(weights, torch.tensor([0.0, 1.0]).expand_as(weights))
    torch.testing.assert_close(outs[1], out)
    torch.testing.assert_close(lse, lse_alone)


@needs_it
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_that_onednn_cannot_walk(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, ks, vs = inputs(dtype)
    expected = both_passes(q[:, :1].expand_as(q).contiguous(), ks, vs)
    monkeypatch.setattr(compiled, "LONGEST_STRIDE", 100)  # that of q is 3 heads' width
    found = both_passes(q[:, :1].expand_as(q), ks, vs)
    assert all(map(torch.equal, expected[3], found[3]))


@needs_it
def test_gradients_of_another_dtype_are_converted() -> None:
    q, (k, _), (v, _) = inputs(torch.float32)
    out, lse = attention(q, k, v, backend="cpu")
    backward = torch.ops.hmc_fast.attention_backward
    arguments = (torch.zeros_like(lse), q, k, v)
    rounded = out.bfloat16()
    found = backward(rounded, *arguments, rounded, lse, 0.125, "cpu")
    expected = backward(rounded.float(), *arguments, rounded.float(), lse, 0.125, "cpu")
    assert all(map(torch.equal, found, expected))


@needs_it
def test_no_products_of_onednn_where_it_is_switched_off() -> None:
    q, ks, vs = inputs(torch.float32)
    with torch.backends.mkldnn.flags(enabled=False):  # type: ignore[no-untyped-call]
        assert not compiled.takes(q, ks, vs)
    assert compiled.takes(q, ks, vs)


@needs_it
@pytest.mark.usefixtures("_anew")
def test_no_number_is_read_that_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a library whose own memory begins as NaN."""
    cases = [inputs(d, m, n, w) for d in DTYPES for m, n, w in ODD_SIZES]
    expected = [both_passes(*case) for case in cases]
    forget()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-DHMC_FAST_POISON"))
    for case, (outs, lse, weights, gradients) in zip(cases, expected, strict=True):
        found = both_passes(*case)
        assert all(map(torch.equal, [*outs, *gradients], [*found[0], *found[3]]))
        assert torch.equal(lse, found[1])
        assert torch.equal(weights, found[2])
    assert list(tmp_path.glob("hmc-fast/cpu/*.so"))


PACKED_MEMORY = """
import sys
import torch
from hmc_fast.bench.measuring.memory import added_peak_mib
from hmc_fast.kernels import attention

torch.set_num_threads(1)
queries, keys, backward = map(int, sys.argv[1:])
leaves = [torch.randn(1, n, 8, d) for n, d in ((queries, 64), (keys, 64), (keys, 256))]
q, k, v = (x.requires_grad_(bool(backward)) for x in leaves)
gradient = torch.ones(1, queries, 8, 256)
def call():
    out, lse = attention(q, k, v, backend="cpu")
    if backward:
        results.extend((out, *torch.autograd.grad(out, (q, k, v), gradient)))
    else:
        results.extend((out, lse))
results = []
small = [x[:, :8].detach() for x in leaves]
attention(*small, backend="cpu")
peak = added_peak_mib(call, torch.device("cpu"))
print(peak - sum(x.nbytes for x in results) / 2**20)
"""


@needs_it
@pytest.mark.parametrize(("queries", "keys", "backward"), [(64, 16384, 0), (8000, 256, 1)])
def test_packed_heads_are_bounded_in_bytes(queries: int, keys: int, backward: int) -> None:
    """Of eight heads, 160 and 181 MiB packed, as many wait at once as fit in 64 MiB a thread."""
    arguments = [sys.executable, "-c", PACKED_MEMORY, *map(str, (queries, keys, backward))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 64 + 16


ODD_SIZES = ((1, (1,), (2,)), (37, (53, 5), (40, 30)), (259, (301,), (34,)), (300, (1031,), (256,)))


@needs_it
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_reaches_its_own_row_alone(value: float, dtype: torch.dtype) -> None:
    q, (k, _), (v, _) = inputs(dtype)
    clean, _ = attention(q, k, v, backend="cpu")
    q[1, 5, 2, 0] = value
    out, lse = attention(q, k, v, backend="cpu")
    assert out[1, 5, 2].isnan().all()
    assert lse[1, 2, 5].isnan()
    out[1, 5, 2] = clean[1, 5, 2]
    assert torch.equal(out, clean)


@needs_it
def test_what_it_does_not_take() -> None:
    q, ks, vs = inputs(torch.float16)
    assert not compiled.takes(q, ks, vs)
    q, ks, vs = inputs(torch.bfloat16)
    assert not compiled.takes(q[..., :63], [k[..., :63] for k in ks], vs)
    assert not compiled.takes(q[:, :0], ks, vs)


GUARDED = """
from hmc_fast.kernels.cpu.compiled import attention as compiled
torch.manual_seed(0)
for at_end in (False, True):
    for dtype in (d for d in compiled.INSTRUCTIONS if compiled.why_not(d) is None):
        for queries, lengths, width, value_widths in (
            (1, (1,), 16, (17,)), (1, (1,), 16, (18,)), (37, (53, 5), 24, (40, 31)),
            (37, (53, 5), 24, (40, 30)), (70, (1031,), 64, (256,)), (259, (301,), 30, (34,)),
        ):
            def filled(*shape):
                return guarded(shape, at_end, dtype).copy_(torch.randn(shape))

            q = filled(1, queries, 1, width)
            ks = [filled(1, n, 1, width) for n in lengths]
            vs = [filled(1, n, 1, d) for n, d in zip(lengths, value_widths)]
            def passes(q, ks, vs):
                outs, lse, weights = compiled.multi_scale_attention(q, ks, vs, 0.25)
                results = [*outs, lse, weights]
                if compiled.takes_backward(q, ks, vs):
                    dq, dks, dvs = compiled.multi_scale_attention_backward(
                        outs, lse, weights, q, ks, vs, outs, lse, weights, 0.25
                    )
                    results += [dq, *dks, *dvs]
                return results

            plain = passes(q.clone(), [k.clone() for k in ks], [v.clone() for v in vs])
            new, torch.Tensor.new_empty = torch.Tensor.new_empty, (
                lambda self, *shape, dtype=None: guarded(
                    shape if isinstance(shape[0], int) else shape[0], at_end, dtype or self.dtype
                )
            )
            placed = passes(q, ks, vs)
            torch.Tensor.new_empty = new
            assert all(map(torch.equal, plain, placed))
print("untouched")
"""


@needs_it
def test_nothing_beside_a_tensor_is_touched(run_guarded: Run) -> None:
    result = run_guarded(GUARDED)
    assert (result.returncode, result.stdout) == (0, "untouched\n"), result.stderr


def falls_back() -> str:
    """Why there is no compiled attention; the same call is served by blocks."""
    q, ks, vs = inputs(torch.float32)
    assert not compiled.takes(q, ks, vs)
    assert_parity(q, ks, vs, scale=0.125, backend="cpu")
    return compiled.why_not(torch.float32) or ""


@pytest.mark.usefixtures("_anew")
class TestWithout:
    """Each way to have none is a reason, and attention goes on by blocks."""

    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "cpu_name": "of a test"}
        )
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def test_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(library.SWITCH, "0")
        assert falls_back() == "HMC_FAST_COMPILE=0"

    def test_another_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
        assert falls_back() == "the processor lacks avx512_f"

    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(library.shutil, "which", lambda name: None)
        assert falls_back() == "there is no C++ compiler; apt-get install g++"

    def test_a_compiler_that_fails_is_asked_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = tmp_path / "asked"
        compiler = tmp_path / "c++"
        compiler.write_text(
            f'#!/bin/sh\necho once >> {asked}\necho "x.cpp: error: no" >&2\nexit 1\n'
        )
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        assert falls_back() == f"{compiler} failed: x.cpp: error: no"
        assert falls_back()
        assert asked.read_text() == "once\n"
        assert not list((tmp_path / "hmc-fast" / "cpu").iterdir())

    def test_a_user_without_a_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", home)
        assert falls_back() == "there is no home folder; set XDG_CACHE_HOME"

    def test_a_cache_that_may_not_be_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def exists(path: Path) -> bool:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "exists", exists)
        assert "cannot be used (Permission denied)" in falls_back()

    def test_a_library_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        no_library = ["-E", "-x", "c", "/dev/null", "-o"]
        monkeypatch.setattr(library, "_linking", lambda made, to: [*no_library, str(to)])
        assert "cannot be loaded" in falls_back()

    def test_a_cache_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert "cannot be used" in falls_back()


@needs_it
@pytest.mark.usefixtures("_anew")
def test_a_processor_without_products_of_bf16_has_those_of_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-mno-avx512bf16"))
    assert compiled.why_not(torch.float32) is None
    if torch.bfloat16 in DTYPES:
        assert "has no products" in (compiled.why_not(torch.bfloat16) or "")


COMPILES = """
import torch
from hmc_fast.kernels.cpu.compiled import attention as compiled
print(compiled.why_not(torch.float32) or "compiled")
"""


@needs_it
def test_processes_that_compile_at_once_leave_one_library(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", COMPILES], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in started] == ["compiled\n"] * 2
    assert [path.suffix for path in (tmp_path / "hmc-fast" / "cpu").iterdir()] == [".so"]


@needs_it
def test_a_killed_compilation_is_done_again(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", COMPILES], env=environment)
    while not list(tmp_path.glob("hmc-fast/cpu/*/*")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("hmc-fast/cpu/*.so"))
    done = subprocess.run(
        [sys.executable, "-c", COMPILES], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "compiled\n"
