"""From a checkpoint to a verified ONNX file or TensorRT engine, and back into Python.

Every artefact has a sidecar, ``ARTEFACT.json``: what it computes, what it was built for and with,
and what its file is. Nothing is loaded whose sidecar does not fit.
"""

from hmc_fast.export.engine import EngineOptions, export_engine
from hmc_fast.export.onnx_export import OnnxExport, export_onnx, make_onnx
from hmc_fast.export.runtime import load
from hmc_fast.export.sidecar import Profile, Sidecar, read_sidecar
from hmc_fast.export.verify import Bounds, verify

__all__ = [
    "Bounds",
    "EngineOptions",
    "OnnxExport",
    "Profile",
    "Sidecar",
    "export_engine",
    "export_onnx",
    "load",
    "make_onnx",
    "read_sidecar",
    "verify",
]
