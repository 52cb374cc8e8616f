"""The reference against an independent fp64 softmax attention and against properties."""

import random

import pytest
import torch
from torch import Tensor

from hmc_fast.kernels import attention, multi_scale_attention, reference
from hmc_fast.kernels.testing import assert_parity, textbook_attention


def draw(
    seed: int, queries: int, sources: list[tuple[int, int]], heads: int, qk: int, batch: int = 2
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q = normal(batch, queries, heads, qk)
    ks = [normal(batch, n, heads, qk) for n, _ in sources]
    return q, ks, [normal(batch, n, heads, dv) for n, dv in sources]


def drawn_shapes(count: int) -> list[tuple[int, int, list[tuple[int, int]], int, int]]:
    rng = random.Random(20)
    lengths = [1, 2, 3, 7, 16, 31, 49, 64, 97, 128, 131]
    return [
        (
            seed,
            rng.choice(lengths),
            [
                (rng.choice(lengths), rng.choice([16, 17, 64, 96, 256]))
                for _ in range(rng.choice([1, 1, 2, 3]))
            ],
            rng.choice([1, 2, 3, 8]),
            rng.choice([16, 24, 64, 256]),
        )
        for seed in range(count)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", drawn_shapes(20), ids=str)
def test_parity_with_fp64_softmax_attention(
    shape: tuple[int, int, list[tuple[int, int]], int, int], dtype: torch.dtype
) -> None:
    q, ks, vs = draw(*shape)
    assert_parity(
        q.to(dtype), [k.to(dtype) for k in ks], [v.to(dtype) for v in vs], backend="reference"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_parity_on_a_gpu(dtype: torch.dtype) -> None:
    q, ks, vs = draw(0, 97, [(131, 64), (49, 256)], 4, 64)
    on_gpu = [[t.to("cuda", dtype) for t in tensors] for tensors in ([q], ks, vs)]
    assert_parity(on_gpu[0][0], on_gpu[1], on_gpu[2], backend="reference")


@pytest.mark.parametrize("sources", [[(5, 3)], [(5, 3), (1, 4), (7, 2)]], ids=str)
def test_gradcheck_through_every_output(sources: list[tuple[int, int]]) -> None:
    q, ks, vs = draw(0, 4, sources, 2, 3)
    leaves = [t.double().requires_grad_() for t in (q, *ks, *vs)]
    n = len(sources)

    def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
        outs, lse, weights = multi_scale_attention(inputs[0], inputs[1 : n + 1], inputs[n + 1 :])
        return (*outs, lse, weights)

    assert torch.autograd.gradcheck(outputs, leaves)


def test_gradcheck_of_single_source_attention() -> None:
    q, (k,), (v,) = draw(1, 4, [(6, 5)], 2, 3)
    leaves = [t.double().requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: attention(*x, scale=0.7), leaves)


def test_joint_softmax_is_attention_over_the_concatenated_sources() -> None:
    q, ks, vs = draw(2, 9, [(5, 8), (11, 8), (1, 8)], 3, 16)
    q, ks, vs = q.double(), [k.double() for k in ks], [v.double() for v in vs]
    outs, lse, weights = multi_scale_attention(q, ks, vs)
    joint, joint_lse = attention(q, torch.cat(ks, 1), torch.cat(vs, 1))
    torch.testing.assert_close(sum(outs), joint, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, joint_lse, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(lse), rtol=1e-12, atol=1e-12)


def test_permuting_keys_splitting_sources_and_duplicating_the_batch_change_nothing() -> None:
    q, (k,), (v,) = draw(3, 7, [(30, 12)], 2, 16)
    q, k, v = q.double(), k.double(), v.double()
    out, lse = attention(q, k, v)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    permuted, _ = attention(q, k[:, order], v[:, order])
    torch.testing.assert_close(permuted, out, rtol=1e-12, atol=1e-12)
    split, split_lse, _ = multi_scale_attention(q, k.split([13, 17], 1), v.split([13, 17], 1))
    torch.testing.assert_close(sum(split), out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(split_lse, lse, rtol=1e-12, atol=1e-12)
    doubled, _ = attention(*(torch.cat([t, t]) for t in (q, k, v)))
    torch.testing.assert_close(doubled, torch.cat([out, out]), rtol=1e-12, atol=1e-12)


def test_query_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    q, ks, vs = draw(4, 37, [(20, 8), (9, 16)], 2, 16)
    q, ks, vs = q.double(), [k.double() for k in ks], [v.double() for v in vs]
    whole = multi_scale_attention(q, ks, vs)
    monkeypatch.setattr(reference, "SCORE_ELEMENTS_PER_CHUNK", 5 * 2 * 2 * 29)
    leaves = [t.clone().requires_grad_() for t in (q, *ks, *vs)]
    outs, lse, weights = multi_scale_attention(leaves[0], leaves[1:3], leaves[3:])
    for actual, expected in zip((*outs, lse, weights), (*whole[0], *whole[1:]), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(sum(o.sum() for o in outs) + lse.sum(), leaves)
    plain = [t.clone().requires_grad_() for t in (q, *ks, *vs)]
    outs, lse, _ = textbook_attention(plain[0], plain[1:3], plain[3:], 0.25)
    expected_gradients = torch.autograd.grad(sum(o.sum() for o in outs) + lse.sum(), plain)
    for actual, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_hard_inputs_stay_finite(dtype: torch.dtype) -> None:
    q, ks, vs = draw(5, 6, [(1, 16), (9, 32)], 2, 16)
    assert_parity(q.to(dtype), [ks[0].to(dtype)], [vs[0].to(dtype)], backend="reference")
    large = (q / q.norm(dim=-1, keepdim=True) * 80).to(dtype)
    keys = [(k / k.norm(dim=-1, keepdim=True)).to(dtype) for k in ks]
    assert_parity(large, keys, [v.to(dtype) for v in vs], scale=1.0, backend="reference")
    constant = [torch.ones_like(k).to(dtype) for k in ks]
    assert_parity(q.to(dtype), constant, [v.to(dtype) for v in vs], backend="reference")


def test_strided_inputs_need_no_copy_to_be_right() -> None:
    feature_map = torch.randn(2, 64, 5, 7).to(memory_format=torch.channels_last)
    tokens = feature_map.permute(0, 2, 3, 1).flatten(1, 2).view(2, 35, 2, 32)
    assert tokens.data_ptr() == feature_map.data_ptr()
    packed = torch.randn(2, 35, 4, 16)
    q, k = packed[:, ::2, :2], packed[:, :, 2:]
    assert_parity(q, [k], [tokens], backend="reference")


def test_two_backward_runs_give_identical_bits() -> None:
    q, ks, vs = draw(6, 65, [(130, 32), (17, 64)], 4, 64)

    def gradients() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (q, *ks, *vs)]
        outs, lse, weights = multi_scale_attention(leaves[0], leaves[1:3], leaves[3:])
        total = sum(o.square().sum() for o in outs) + lse.sum() + weights.square().sum()
        return list(torch.autograd.grad(total, leaves))

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_reach_into_the_reference(dtype: torch.dtype) -> None:
    q, ks, vs = draw(9, 33, [(40, 16), (7, 32)], 2, 16)
    q, ks, vs = q.to(dtype), [k.to(dtype) for k in ks], [v.to(dtype) for v in vs]
    outs, lse, weights = multi_scale_attention(q, ks, vs)
    with torch.autocast("cpu", dtype):
        cast_outs, cast_lse, cast_weights = multi_scale_attention(q, ks, vs)
    for a, b in zip((*cast_outs, cast_lse, cast_weights), (*outs, lse, weights), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_attention_weights_are_the_probabilities() -> None:
    q, (k,), (v,) = draw(7, 5, [(11, 8)], 2, 16)
    probabilities = reference.attention_weights(q.double(), k.double(), 0.25)
    out, _ = attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(torch.einsum("bhmn,bnhd->bmhd", probabilities, v.double()), out)


def test_the_parity_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    q, ks, vs = draw(8, 9, [(12, 16)], 2, 16)
    right = reference.multi_scale_attention

    def wrong(*args: object, **kwargs: object) -> object:
        outs, lse, weights = right(*args, **kwargs)  # type: ignore[arg-type]
        return [out * 1.0001 for out in outs], lse, weights

    monkeypatch.setattr(reference, "multi_scale_attention", wrong)
    with pytest.raises(AssertionError, match=r"outs\[0\]: max error"):
        assert_parity(q, ks, vs, backend="reference")
