"""FlashAttention-3 and -4: packages with their interfaces stand in for those, which need a GPU."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hmc_fast.bench.cases import parse_case
from hmc_fast.bench.parity import budget_units, truth_of
from hmc_fast.bench.peers import flash_attention, peer
from hmc_fast.bench.peers.peer import ModuleVariant
from hmc_fast.bench.trials import AttentionTrials, results_of, tasks_of

CPU = torch.device("cpu")
ATTEND = """
import torch
calls = []
def attend(q, k, v, softmax_scale):
    calls.append((q.shape[-1], v.shape[-1]))
    assert q.shape[2] == k.shape[2] == v.shape[2] and k.shape[1] == v.shape[1]
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT * softmax_scale
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1)
"""
THIRD = """
def flash_attn_func(q, k, v, softmax_scale=None, causal=False, deterministic=False):
    out, lse = attend(q, k, v, softmax_scale)
    return (out, lse) if OLD else out
"""
FOURTH = """
tiles = []
def flash_attn_func(q, k, v, softmax_scale=None, causal=False):
    return attend(q, k, v, softmax_scale)
if OLD:
    def _flash_attn_fwd(q, k, v, softmax_scale=None, m_block_size=128, n_block_size=128,
                        return_lse=False):
        tiles.append((m_block_size, n_block_size))
        assert return_lse
        return attend(q, k, v, softmax_scale)
else:
    def _flash_attn_fwd(q, k, v, softmax_scale=None, tile_mn=None, return_lse=False):
        tiles.append(tile_mn)
        assert return_lse
        return attend(q, k, v, softmax_scale)
"""


@pytest.fixture(params=[False, True], ids=["new releases", "old releases"])
def packages(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Both packages on the path."""
    old = f"OLD = {request.param}\n"
    (tmp_path / "flash_attn_interface.py").write_text(old + ATTEND + THIRD)
    cute = tmp_path / "flash_attn" / "cute"
    cute.mkdir(parents=True)
    (tmp_path / "flash_attn" / "__init__.py").touch()
    (cute / "__init__.py").touch()
    (cute / "interface.py").write_text(old + ATTEND + FOURTH)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.startswith("flash_attn")]:
        monkeypatch.delitem(sys.modules, name)
    flash_attention._third.cache_clear()
    yield
    flash_attention._third.cache_clear()
    for name in [n for n in sys.modules if n.startswith("flash_attn")]:
        del sys.modules[name]


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("case_name", ["hsa_c4@64x2", "msca_c5@64x2", "hsa_block_c3@64x1"])
@pytest.mark.parametrize("name", ["flash_attention_3", "flash_attention_4"])
def test_every_way_computes_the_case(name: str, case_name: str) -> None:
    case = parse_case(case_name)
    trials = AttentionTrials(case, torch.float32, CPU)
    inputs = case.inputs(torch.float32, CPU, 0)
    checked = truth_of(case, inputs)
    passes = set()
    for variant in trials.variants(peer(name)):
        assert not isinstance(variant, ModuleVariant)
        call = variant.bind(case, inputs)
        task = "both" if "both" in tasks_of(variant) else "forward"
        assert budget_units(checked.check(results_of(call, task))) <= 1, variant.name
        passes.add(task)
    third = name == "flash_attention_3"
    tiled = not third and case.kind == "operator"
    assert passes == ({"both", "forward"} if tiled else {"both"})
    module = sys.modules["flash_attn_interface" if third else "flash_attn.cute.interface"]
    native = {(64, width) for width in case.problems(torch.float32, CPU)[0].v_head_dims}
    assert native <= set(module.calls)  # ours, unpadded
    assert {(256, 256)} <= set(module.calls)
    if tiled:
        assert set(module.tiles) == set(flash_attention.FOURTH_TILES)


def test_a_missing_package_or_gpu_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    case = parse_case("hsa_c4@64x2")
    third, fourth = peer("flash_attention_3"), peer("flash_attention_4")
    assert third.why_not(case, torch.bfloat16, CPU) == "it needs an NVIDIA GPU"
    gpu = torch.device("cuda")
    monkeypatch.setattr(flash_attention, "_installed", lambda module: False)
    assert "hopper) is not installed" in (third.why_not(case, torch.bfloat16, gpu) or "")
    assert "flash-attn-4 is not installed" in (fourth.why_not(case, torch.bfloat16, gpu) or "")
    monkeypatch.setattr(flash_attention, "_installed", lambda module: True)
    assert "fp16 and bf16" in (third.why_not(case, torch.float32, gpu) or "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert third.why_not(case, torch.bfloat16, gpu) == "it has no kernels for sm_100"
    assert fourth.why_not(case, torch.bfloat16, gpu) is None


def test_what_is_not_there_is_not_installed() -> None:
    assert flash_attention._installed("json.decoder")
    assert not flash_attention._installed("json.no_such_module")
    assert not flash_attention._installed("no_such_package.of.ours")
