"""One form of a model to infer with, wherever that happens.

Evaluation mode, batch norms folded, on a CPU the weights of convolutions laid out once.
"""

from hmc_fast.inference.folding import folded, fuse
from hmc_fast.inference.precision import slower_precision
from hmc_fast.inference.prepared import PreparedModel, prepare

__all__ = ["PreparedModel", "folded", "fuse", "prepare", "slower_precision"]
