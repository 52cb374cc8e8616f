"""Every form of attention is the attention of the kernels, and runtimes get the one they want."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import sampled
from torch import Tensor, nn

from hmc_fast import UserError, create_model
from hmc_fast.checkpoint import load_model
from hmc_fast.data import Film
from hmc_fast.export import attention, export_onnx, load, make_onnx, read_sidecar, verify
from hmc_fast.export.attention import FORMS, RUNTIME_FORMS, block_rows, decompositions
from hmc_fast.export.onnx_export import to_onnx
from hmc_fast.export.runtime import SESSIONS, check_attention
from hmc_fast.export.serving import ServingOptions, write_model_repository
from hmc_fast.kernels import attention as attention_of_one
from hmc_fast.kernels import multi_scale_attention


def drawn(
    queries: int, keys: list[int], widths: list[int], seed: int, spread: float = 1.0
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def tensor(tokens: int, width: int) -> Tensor:
        return torch.randn(2, tokens, 3, width, generator=generator, dtype=torch.float64)

    q = spread * tensor(queries, 8)
    return (
        q,
        [tensor(n, 8) for n in keys],
        [tensor(n, w) for n, w in zip(keys, widths, strict=True)],
    )


@settings(deadline=None, max_examples=40)
@given(
    queries=st.integers(1, 70),
    sources=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([1, 5, 8, 16])), min_size=1, max_size=3
    ),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_attention_of_the_kernels(
    name: str, queries: int, sources: list[tuple[int, int]], seed: int
) -> None:
    q, ks, vs = drawn(queries, [n for n, _ in sources], [w for _, w in sources], seed)
    expected, _, _ = multi_scale_attention(q, ks, vs, scale=0.3, backend="reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK_SCORES", 64)
        patch.setattr(attention, "LEAST_BLOCK", 16)
        outs = FORMS[name].attend(q, ks, vs, 0.3)
    for out, right in zip(outs, expected, strict=True):
        # The softmax is in fp32 whatever the dtype.
        torch.testing.assert_close(out, right, atol=1e-5, rtol=1e-5)
        assert out.is_contiguous()


@pytest.mark.parametrize("name", FORMS)
def test_scores_of_80_do_no_harm_in_half_precision(name: str) -> None:
    q, ks, vs = drawn(33, [50], [16], 0, spread=16.0)
    scores = torch.einsum("bmhd,bnhd->bhmn", q, ks[0]) * 0.7
    assert scores.abs().max() > 80
    half = [[x.half() for x in xs] for xs in ([q], ks, vs)]
    expected, _, _ = multi_scale_attention(
        half[0][0].double(),
        [k.double() for k in half[1]],
        [v.double() for v in half[2]],
        scale=0.7,
        backend="reference",
    )
    (out,) = FORMS[name].attend(half[0][0], half[1], half[2], 0.7)
    # A score of 80 is rounded to 1/16 in fp16 before the softmax sees it.
    torch.testing.assert_close(out.double(), expected[0], atol=0.08, rtol=0.08)


class Packed(nn.Module):
    """One and two sources of attention on ``[B, N, H, 8 + 8 + 16]``: queries, keys, values."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.to(self.dtype).split([8, 8, 16], dim=-1)
        (one, _), (two, _, _) = (
            attention_of_one(q, k, v, scale=1.0, backend="reference"),
            multi_scale_attention(
                q, [k, k[:, ::2]], [v, v[:, ::2, :, :4]], scale=1.0, backend="reference"
            ),
        )
        return torch.cat([one, *two], dim=-1).float()


@pytest.mark.systems
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("name", "block", "widest", "attentions"),
    [
        pytest.param("blocks", 16, 256, 6, id="blocks"),
        pytest.param("blocks", 1024, 256, 2, id="whole"),
        pytest.param("equal-widths", 1024, 256, 2, id="equal-widths, sources together"),
        pytest.param("equal-widths", 1024, 16, 3, id="equal-widths, sources apart"),
        pytest.param("nodes", 1024, 16, 3, id="nodes, sources apart"),
    ],
)
def test_scores_of_80_through_onnx_runtime(
    name: str, block: int, widest: int, attentions: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 48, 2, 32, generator=generator)
    x[..., :8] *= 12
    q, k, _ = x.split([8, 8, 16], dim=-1)
    scores = torch.einsum("bmhd,bnhd->bhmn", q, k)
    assert scores.min() < -80
    assert scores.max() > 80
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(
        Packed(dtype), (x[:2],), dynamic_shapes=({0: batch},), strict=False
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "block_rows", lambda keys: block)
        patch.setattr(attention, "WIDEST_KERNEL", widest)
        content = to_onnx(
            program.run_decompositions(decompositions(FORMS[name])), max(20, FORMS[name].opset)
        )
    nodes = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert nodes.count("Attention" if name == "nodes" else "Softmax") == attentions
    session = onnxruntime.InferenceSession(content)
    (found,) = session.run(None, {"images": x.numpy()})
    expected = Packed(torch.float64)(x.to(dtype).double()).numpy()
    # A score of 80 is rounded to 1/16 in fp16 before the softmax sees it.
    bound = 1e-4 if dtype == torch.float32 else 0.08
    np.testing.assert_allclose(found, expected, atol=bound, rtol=bound)


def test_blocks_bound_the_scores() -> None:
    assert block_rows(16_384) * 16_384 * 4 == 32 * 2**20
    assert block_rows(784) > 784
    assert block_rows(10**9) == 128


def test_the_graph_has_the_blocks_and_the_sidecar_names_the_form(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = save_model(create_model("resnet18_hsa"), tmp_path / "m.safetensors", 256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK_SCORES", 2**17)
        export = make_onnx(path)
    nodes = [node.op_type for node in onnx.load_from_string(export.content).graph.node]
    assert nodes.count("Softmax") == 1024 // (2**17 // 1024) + 1 + 1
    assert export.sidecar.attention == "blocks"


NARROW = ("hmc_net_resnet18", "hmc_net_resnet18_lesions")
WRITTEN_FOR = ("onnxruntime", "openvino", "tensorrt")


@pytest.fixture(scope="module")
def graphs(
    checkpoint: Path, onnx_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A graph written for each runtime."""
    folder = tmp_path_factory.mktemp("graphs")
    paths = {runtime: folder / f"{runtime}.onnx" for runtime in WRITTEN_FOR[1:]}
    for runtime, path in paths.items():
        export_onnx(checkpoint, path, runtime=runtime)
    return {WRITTEN_FOR[0]: onnx_file, **paths}


@pytest.mark.parametrize("given_to", WRITTEN_FOR)
@pytest.mark.parametrize("written_for", WRITTEN_FOR)
def test_a_graph_of_one_runtime_given_to_another_works_or_is_refused_by_name(
    graphs: dict[str, Path], checkpoint: Path, written_for: str, given_to: str
) -> None:
    path = graphs[written_for]
    if given_to == "tensorrt":
        with pytest.raises(UserError, match="tensorrt runs an engine: hmc-fast export tensorrt"):
            load(path, runtime=given_to)
    elif written_for == "tensorrt":
        with pytest.raises(UserError, match=rf"\(equal-widths\), .*--runtime {given_to}"):
            load(path, runtime=given_to)
    else:
        images = torch.randn(2, 3, 64, 64)
        expected = load_model(checkpoint, backend="reference").model(images).detach()
        found = load(path, runtime=given_to)(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("runtime", RUNTIME_FORMS)
@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_run_by_its_runtimes_alone(onnx_file: Path, form: str, runtime: str) -> None:
    sidecar = replace(read_sidecar(onnx_file), attention=form)
    if runtime in SESSIONS and RUNTIME_FORMS[runtime] == form:
        check_attention(onnx_file, sidecar, runtime)
        return
    with pytest.raises(UserError, match=runtime):
        check_attention(onnx_file, sidecar, runtime)


def test_other_ways_to_a_graph_refuse_by_name(
    graphs: dict[str, Path],
    checkpoint: Path,
    onnx_file: Path,
    phantoms: list[Film],
    tmp_path: Path,
) -> None:
    fused = graphs["tensorrt"]
    verified = verify(fused, phantoms, max_films=2)
    assert not verified.passed
    for row, runtime in zip(verified.rows[1:], ("onnxruntime", "openvino"), strict=True):
        assert row.status == "failed"
        assert f"--runtime {runtime}" in (row.reason or "")
    for device in ("cpu", "gpu"):
        with pytest.raises(UserError, match="another runtime .*--runtime onnxruntime"):
            write_model_repository(fused, tmp_path / "r", ServingOptions(device=device))
    with pytest.raises(UserError, match="unknown runtime 'coreml'"):
        export_onnx(checkpoint, tmp_path / "m.onnx", runtime="coreml")
    with pytest.raises(UserError, match="unknown runtime 'coreml'"):
        load(onnx_file, runtime="coreml")
    assert not list(tmp_path.iterdir())


class UsesWeights(nn.Module):
    """Attention over two sources whose scale weights reach the logits."""

    def __init__(self, *, used: bool) -> None:
        super().__init__()
        self.used = used

    def forward(self, x: Tensor) -> Tensor:
        outs, _, weights = multi_scale_attention(x, [x, x + 1], [x, x], backend="reference")
        out = outs[0].sum((1, 2))
        return out + weights.sum((1, 2)).mean(-1, keepdim=True) if self.used else out


def test_a_model_that_uses_what_no_graph_computes_is_refused() -> None:
    x = torch.randn(2, 5, 3, 8)
    for used in (False, True):
        program = torch.export.export(UsesWeights(used=used), (x,), strict=False)
        if not used:
            attention.check_only_outputs_used(program)
            continue
        with pytest.raises(UserError, match="uses the log-sum-exp or the scale weights"):
            attention.check_only_outputs_used(program)


def test_a_sidecar_of_before_the_forms_is_read(onnx_file: Path) -> None:
    sidecar = read_sidecar(onnx_file)
    values = sidecar.to_json()
    del values["attention"]
    assert type(sidecar).from_json(values) == replace(sidecar, attention=None)


@pytest.mark.systems
@pytest.mark.parametrize(
    ("precision", "model"),
    sampled(
        product(("fp32", "fp16"), NARROW),
        [("fp16", "hmc_net_resnet18"), ("fp32", "hmc_net_resnet18_lesions")],
    ),
)
def test_runtimes_agree(
    precision: str, model: str, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    path = save_model(create_model(model), tmp_path / "m.safetensors")
    export_onnx(path, tmp_path / "m.onnx", precision=precision)
    images = torch.randn(3, 3, 64, 64)
    ours, theirs = (
        load(tmp_path / "m.onnx", runtime=r)(images) for r in ("onnxruntime", "openvino")
    )
    torch.testing.assert_close(ours, theirs, atol=2e-2 if precision == "fp16" else 1e-4, rtol=0)


PEAK = """
import sys, torch
from hmc_fast.export import load
torch.set_num_threads(2)
model = load(sys.argv[1], runtime=sys.argv[2])
for _ in range(2):  # a runtime may take more once it knows the sizes
    model(torch.zeros(1, 3, 1024, 1024))
status = open("/proc/self/status").read()
print(next(int(line.split()[1]) // 1024 for line in status.splitlines() if "VmHWM" in line))
"""


@pytest.mark.systems
@pytest.mark.exhaustive  # CI holds the record of scripts/measure_graphs.py to its bounds
def test_one_film_at_1024_takes_at_most_2_gib(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = save_model(create_model("hmc_net"), tmp_path / "m.safetensors", 1024)
    export_onnx(path, tmp_path / "m.onnx")
    for runtime in ("onnxruntime", "openvino"):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path / "m.onnx"), runtime],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert 300 < int(done.stdout) <= 2048, runtime


@pytest.mark.systems
@pytest.mark.parametrize(
    ("model", "sides"),
    sampled(
        product(NARROW, ((224, 224), (512, 512), (960, 544))),
        [("hmc_net_resnet18_lesions", (224, 224))],
    ),
    ids=str,
)
def test_sizes_and_batches(
    model: str, sides: tuple[int, int], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = save_model(create_model(model), tmp_path / "m.safetensors", sides)
    export_onnx(path, tmp_path / "m.onnx")
    runner = load(tmp_path / "m.onnx")
    images = torch.randn(3, 3, *sides)
    torch.testing.assert_close(runner(images)[1:2], runner(images[1:2]), atol=1e-4, rtol=1e-4)
    expected = load_model(path, backend="reference").model(images[:1]).detach()
    torch.testing.assert_close(runner(images[:1]), expected, atol=1e-3, rtol=0)
