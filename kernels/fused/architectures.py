"""The seam for kernels of one architecture: from an operator and an architecture to its plan.

A plan turns tensors into launches. To add a kernel for one architecture, write a file beside
``forward.py`` with the kernel and its plan (the same arguments as the default's), and add a line to
:data:`PLANS`, as for ``hopper_forward.py``.
"""

from collections.abc import Callable

from hmc_fast.kernels.fused.backward import plan_attention_backward
from hmc_fast.kernels.fused.forward import plan_attention_forward
from hmc_fast.kernels.fused.hopper_backward import plan_hopper_attention_backward
from hmc_fast.kernels.fused.hopper_forward import plan_hopper_attention_forward
from hmc_fast.kernels.fused.launch import Launch
from hmc_fast.kernels.fused.projection import plan_gated_projection

DEFAULT = "default"
Plan = Callable[..., list[Launch]]

PLANS: dict[str, dict[str, Plan]] = {
    "attention_forward": {
        DEFAULT: plan_attention_forward,
        "sm_90": plan_hopper_attention_forward,
    },
    "attention_backward": {
        DEFAULT: plan_attention_backward,
        "sm_90": plan_hopper_attention_backward,
    },
    "gated_projection": {DEFAULT: plan_gated_projection},
}


def plan_for(operator: str, architecture: str) -> Plan:
    """The plan of ``operator`` on ``architecture``, the default one where it has none."""
    plans = PLANS[operator]
    return plans.get(architecture, plans[DEFAULT])
