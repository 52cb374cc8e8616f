"""The checks behind ``hmc-fast doctor``."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

import psutil
import torch
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from hmc_fast.devices import default_device
from hmc_fast.environment import cpu_name, installed_version
from hmc_fast.kernels.backend import (
    ENVIRONMENT_VARIABLE,
    BackendUnavailableError,
    UnknownBackendError,
    resolve_backend,
)
from hmc_fast.kernels.capability import reasons_against
from hmc_fast.kernels.cpu.compiled import attention as compiled
from hmc_fast.kernels.geometry import self_attention_problem

DECODERS: dict[UID, str] = {
    ImplicitVRLittleEndian: "pydicom",
    ExplicitVRLittleEndian: "pydicom",
    DeflatedExplicitVRLittleEndian: "pydicom",
    RLELossless: "pydicom",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "gdcm",
    JPEG2000Lossless: "openjpeg",
    HTJ2KLossless: "openjpeg",
}
"""The module that each transfer syntax needs, see :mod:`hmc_fast.data.dicom`."""


@dataclass(frozen=True)
class Check:
    """One line of the examination; ``remedy`` is None where nothing is to be done."""

    what: str
    available: bool
    detail: str
    remedy: str | None = None


def examine() -> list[Check]:
    """All checks, most basic first. Nothing is changed and no GPU memory is taken."""
    return [
        _python(),
        _processor(),
        _torch(),
        _gpu(),
        _reference(),
        _triton(),
        _backend(),
        _compiler(),
        _compiled_attention(),
        *_decoders(),
        *_extras(),
    ]


def _python() -> Check:
    return Check("Python", True, sys.version.split()[0])


def _processor() -> Check:
    memory = psutil.virtual_memory()
    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    detail = (
        f"{cpu_name()}, {cores} cores, {memory.available / 2**30:.1f} of "
        f"{memory.total / 2**30:.1f} GiB free"
    )
    return Check("processor", True, detail)


def _torch() -> Check:
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return Check("torch", True, f"{torch.__version__}, {cuda}")


def _gpu() -> Check:
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        detail = f"{torch.cuda.get_device_name()}, sm_{major}{minor}, {memory:.0f} GiB"
        remedy = "hmc-fast gpu-check runs kernels, exports and peers on it, and says what it proves"
        return Check("NVIDIA GPU", True, detail, remedy)
    if not torch.version.cuda:
        remedy = "install a CUDA build of torch if the machine has an NVIDIA GPU"
        return Check("NVIDIA GPU", False, "this torch is built without CUDA", remedy)
    remedy = "on a machine with an NVIDIA GPU, install or update its driver; everything else runs"
    return Check("NVIDIA GPU", False, "torch sees none (no GPU, or no driver)", remedy)


def _reference() -> Check:
    return Check("reference attention", True, "eager PyTorch, any device, fp16 to fp64")


def _triton() -> Check:
    problem = replace(
        self_attention_problem("c3", 224, 1), dtype=torch.float16, device=default_device()
    )
    reasons = reasons_against(problem, "triton")
    if not reasons:
        return Check("Triton attention", True, f"triton {installed_version('triton')}")
    return Check("Triton attention", False, "; ".join(reasons), "on a CPU, auto takes backend cpu")


def _backend() -> Check:
    """What attention runs by where a call names no backend."""
    problem = replace(
        self_attention_problem("c3", 224, 1), dtype=torch.float32, device=default_device()
    )
    try:
        choice = resolve_backend("auto", problem)
    except (UnknownBackendError, BackendUnavailableError) as error:
        remedy = f"correct {ENVIRONMENT_VARIABLE}, or unset it"
        return Check("attention's backend", False, str(error), remedy)
    return Check("attention's backend", True, f"{choice.name} ({choice.why})")


def _compiler() -> Check:
    compiler = next((c for c in ("g++", "clang++") if shutil.which(c)), None)
    if compiler:
        return Check("torch.compile on the CPU", True, f"compiler {compiler}")
    return Check("torch.compile on the CPU", False, "no C++ compiler", "apt-get install g++")


def _compiled_attention() -> Check:
    what = "compiled CPU attention"
    reasons = {str(dtype)[6:]: compiled.why_not(dtype) for dtype in compiled.INSTRUCTIONS}
    served = [name for name, reason in reasons.items() if reason is None]
    lacking = "; ".join(f"not {name}: {reason}" for name, reason in reasons.items() if reason)
    if served:
        return Check(what, True, "; ".join(filter(None, (", ".join(served), lacking))))
    return Check(what, False, lacking, "attention runs by blocks in PyTorch")


def _decoders() -> Iterator[Check]:
    for syntax, module in DECODERS.items():
        available = find_spec(module) is not None
        remedy = None if available else "pip install python-gdcm pylibjpeg-openjpeg"
        yield Check(
            f"DICOM {syntax.name}", available, module if available else "no decoder", remedy
        )


def _extras() -> Iterator[Check]:
    for module, package, purpose, extra in (
        ("onnxruntime", "onnxruntime", "ONNX Runtime", "export"),
        ("openvino", "openvino", "OpenVINO", "openvino"),
        ("tensorrt_rtx", "tensorrt-rtx-cu13", "TensorRT for RTX", "tensorrt-rtx"),
        ("tensorrt", "tensorrt", "full TensorRT", "tensorrt"),
        ("tritonclient", "tritonclient", "Triton Inference Server's schema", "serving"),
        ("highdicom", "highdicom", "DICOM results", "dicom"),
        ("pynetdicom", "pynetdicom", "DICOM node", "dicom"),
        ("pytorch_grad_cam", "grad-cam", "Grad-CAM", "explain"),
    ):
        if find_spec(module) is None:
            remedy = f"pip install 'hmc-fast[{extra}]'"
            yield Check(purpose, False, f"{package} is not installed", remedy)
        else:
            yield Check(purpose, True, f"{package} {installed_version(package)}")
