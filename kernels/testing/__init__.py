"""Parity as an error budget: assert it with one call in your own test-suite.

The truth is softmax attention in fp64 over the concatenated sources, written independently of the
reference. A result passes if its error, maximum and mean, is at most twice that of eager PyTorch at
the same precision plus a rounding term, and everything is finite.

The rounding term is what no O(N)-memory implementation can avoid (Dao 2023, FlashAttention-2): the
result is stored in its dtype; probabilities come from scores and a log-sum-exp rounded to fp32,
which costs ``|score|`` units each; and the backward pass takes ``δ = Σ dout ∘ out`` from the
stored, rounded ``out``. Eager PyTorch can be luckier than that (with a single key it is exact), so
its own error alone is no yardstick.

One call in a test-suite of your own, on inputs of your own or on those that :func:`draw_problems`
takes from the capability table::

    @pytest.mark.parametrize("problem", draw_problems(seed=0, count=20), ids=str)
    def test_parity(problem):
        assert_parity(*problem.tensors(torch.float16, "cuda"), scale=problem.shape.scale)
"""

from hmc_fast.kernels.testing.budget import (
    EAGER_ERROR_FACTOR,
    ROUNDING_UNITS,
    BudgetUse,
    budget_use,
)
from hmc_fast.kernels.testing.parity import (
    assert_parity,
    assert_projection_parity,
    parity,
    projection_parity,
)
from hmc_fast.kernels.testing.problems import DrawnProblem, draw_problems
from hmc_fast.kernels.testing.truth import textbook_attention, unavoidable_rounding

__all__ = [
    "EAGER_ERROR_FACTOR",
    "ROUNDING_UNITS",
    "BudgetUse",
    "DrawnProblem",
    "assert_parity",
    "assert_projection_parity",
    "budget_use",
    "draw_problems",
    "parity",
    "projection_parity",
    "textbook_attention",
    "unavoidable_rounding",
]
