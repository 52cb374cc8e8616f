"""hmc-fast: HMC-Net for mammograms, fast and verifiable."""

from importlib.metadata import version

from hmc_fast.checkpoint import load_model
from hmc_fast.errors import UserError
from hmc_fast.models import MODEL_NAMES, create_model

__version__ = version("hmc-fast")

__all__ = ["MODEL_NAMES", "UserError", "__version__", "create_model", "load_model"]
