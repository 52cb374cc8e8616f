"""TensorRT and TensorRT for RTX behind one code path: what each has, and one build function.

Their Python APIs share names and meaning. Where one lacks a feature, asking for it is an error that
says so: nothing that was asked for is left out in silence.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hmc_fast.errors import UserError
from hmc_fast.export.packages import need
from hmc_fast.export.plugin import register_plugins
from hmc_fast.export.progress import BuildProgress, progress_monitor, stops_on_interrupt
from hmc_fast.export.sidecar import INPUT_NAME, Profile
from hmc_fast.progress import Progress

AUTO = "auto"
FIRST_DEFAULT_TARGET = 80
"""Without --target: from Ampere on. Turing refuses the fp32 logits of a half-precision graph."""
_TOTAL = re.compile(r"Total (Activation|Weights) Memory: (\d+) bytes")
_FUSED = re.compile(r"Found (\S+) to be part of self-attention pattern")


@dataclass(frozen=True)
class Flavour:
    """A builder: its module, the extra that installs it, and what its users can ask of it.

    ``cross_builds``: it builds for architectures by name, on a machine without a GPU.
    ``times_tactics``: it times kernels while building, so that a timing cache helps.
    ``compatibility``: it has version- and hardware-compatible engines.
    ``plugins``: it embeds kernels that are registered from Python (``tensorrt.plugin``).
    ``tells_fusion``: its log names the nodes that become part of fused attention.
    """

    name: str
    module: str
    cross_builds: bool
    times_tactics: bool
    compatibility: bool
    plugins: bool
    tells_fusion: bool


FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("tensorrt", "tensorrt", False, True, True, True, False),
        Flavour("tensorrt-rtx", "tensorrt_rtx", True, False, False, False, True),
    )
}


@dataclass(frozen=True)
class BuildRequest:
    """What to build; the fields are those of :class:`hmc_fast.export.EngineOptions`."""

    profile: Profile
    targets: tuple[str, ...]
    timing_cache: bytes | None
    version_compatible: bool
    hardware_compatible: bool
    plugin: bool = False


@dataclass(frozen=True)
class BuildLog:
    """What the builder's log says, None where it does not.

    ``activation_bytes`` are those of the largest batch, ``fused_softmaxes`` the number of softmaxes
    that are part of a fused attention kernel.
    """

    activation_bytes: int | None
    weight_bytes: int | None
    fused_softmaxes: int | None

    @classmethod
    def of(cls, lines: Iterable[str], *, tells_fusion: bool) -> "BuildLog":
        """The facts among the lines of a log; where no fusion is told, none is known."""
        totals: dict[str, int] = {}
        fused: set[str] = set()
        for line in lines:
            if match := _TOTAL.search(line):
                totals[match[1]] = int(match[2])
            if match := _FUSED.search(line):
                fused.add(match[1])
        return cls(
            totals.get("Activation"),
            totals.get("Weights"),
            sum("softmax" in name for name in fused) if fused or tells_fusion else None,
        )


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine, its input and output as the builder knows them, and a timing cache."""

    content: bytes
    tensors: dict[str, dict[str, Any]]
    timing_cache: bytes | None
    log: BuildLog


class Builder:
    """One of the two builders, imported.

    Raises :class:`UserError` for an unknown flavour or one that is not installed.
    """

    def __init__(self, flavour: str) -> None:
        self.flavour = FLAVOURS[_choose(flavour)]
        (self.trt,) = need(self.flavour.module, extra=self.flavour.name)
        self.version: str = self.trt.__version__

    def known_targets(self) -> tuple[str, ...]:
        """Architectures that can be named here, as ``sm_89``; the GPU's own without cross-builds.

        Raises :class:`UserError` where the builder needs a GPU and there is none.
        """
        if self.flavour.cross_builds:
            numbers = [re.fullmatch(r"SM(\d+)", name) for name in dir(self.trt.ComputeCapability)]
            return tuple(f"sm_{n}" for n in sorted(int(match[1]) for match in numbers if match))
        if not torch.cuda.is_available():
            raise UserError(
                f"{self.flavour.name} builds on the GPU that it builds for, and torch sees none; "
                "run it on the target machine, or use --flavour tensorrt-rtx"
            )
        return (gpu_architecture(),)

    def choose_targets(self, requested: tuple[str, ...]) -> tuple[str, ...]:
        """The architectures to build for; raises :class:`UserError` for an unknown one."""
        known = self.known_targets()
        for target in requested:
            if target not in known:
                raise UserError(
                    f"unknown target {target!r}; {self.flavour.name} {self.version} builds here "
                    f"for {', '.join(known)}"
                )
        if requested:
            return tuple(dict.fromkeys(requested))
        return tuple(
            target
            for target in known
            if not self.flavour.cross_builds
            or int(target.removeprefix("sm_")) >= FIRST_DEFAULT_TARGET
        )

    def check_features(
        self,
        timing_cache: Path | None,
        version_compatible: bool,
        hardware_compatible: bool,
        plugin: bool,
    ) -> None:
        """Raises :class:`UserError` where a feature is asked for that this builder lacks."""
        if plugin and (version_compatible or hardware_compatible):
            raise UserError(
                "--plugin: its kernels are compiled for one GPU and release; leave "
                "--version-compatible and --hardware-compatible out"
            )
        name = self.flavour.name
        if timing_cache is not None and not self.flavour.times_tactics:
            raise UserError(
                f"--timing-cache: {name} times nothing while building; leave the option out"
            )
        if version_compatible and not self.flavour.compatibility:
            raise UserError(
                f"--version-compatible: {name} has no such engines; build with the version that "
                "runs them"
            )
        if hardware_compatible and not self.flavour.compatibility:
            raise UserError(
                f"--hardware-compatible: {name} takes several architectures instead, for example "
                "--target sm_86,sm_89"
            )
        if plugin and not self.flavour.plugins:
            raise UserError(
                f"--plugin: {name} embeds no kernels of others; use --flavour tensorrt on the GPU "
                "that it builds for, or leave the option out"
            )

    def build(self, onnx: bytes, request: BuildRequest, report: Progress) -> BuiltEngine:
        """Build a strongly typed engine.

        Args:
            onnx: the graph, whose types are the engine's.
            request: profile, targets and features, checked before.
            report: told of the builder's phases, in percent.

        Raises:
            UserError: the parser or the builder refuses; the message is its first error.
            KeyboardInterrupt: Ctrl-C, after the builder stopped.
        """
        trt = self.trt
        logger = _collecting_logger(trt)
        builder = trt.Builder(logger)
        if request.plugin:
            (plugins,) = need(f"{self.flavour.module}.plugin", extra=self.flavour.name)
            register_plugins(trt, plugins, gpu_architecture())
        network = builder.create_network(_strongly_typed(trt))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(onnx):
            reason = parser.get_error(0).desc() if parser.num_errors else logger.first_error()
            raise UserError(f"{self.flavour.name} cannot read the graph: {_one_line(reason)}")
        config = builder.create_builder_config()
        self._add_profile(builder, network, config, request.profile, logger)
        self._configure(config, request)
        progress = BuildProgress(report)
        monitor = progress_monitor(trt, progress)
        config.progress_monitor = monitor
        with stops_on_interrupt(progress):
            engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise UserError(f"{self.flavour.name} cannot build it: {logger.first_error()}")
        cache = config.get_timing_cache() if request.timing_cache is not None else None
        return BuiltEngine(
            bytes(engine),
            _network_tensors(network),
            bytes(cache.serialize()) if cache else None,
            BuildLog.of(logger.lines, tells_fusion=self.flavour.tells_fusion),
        )

    def _add_profile(
        self, builder: Any, network: Any, config: Any, profile: Profile, logger: Any
    ) -> None:
        image = tuple(network.get_input(0).shape)[1:]
        shapes = [(n, *image) for n in (profile.minimum, profile.optimum, profile.maximum)]
        optimisation = builder.create_optimization_profile()
        optimisation.set_shape(INPUT_NAME, *shapes)
        if config.add_optimization_profile(optimisation) < 0:
            raise UserError(f"batch profile {profile}: refused ({logger.first_error()})")

    def _configure(self, config: Any, request: BuildRequest) -> None:
        trt = self.trt
        if self.flavour.cross_builds:
            config.num_compute_capabilities = len(request.targets)
            for index, target in enumerate(request.targets):
                capability = getattr(trt.ComputeCapability, target.replace("sm_", "SM"))
                config.set_compute_capability(capability, index)
        if request.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if request.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if request.timing_cache is not None:
            cache = config.create_timing_cache(request.timing_cache)
            if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
                raise UserError(
                    "--timing-cache: the file is damaged or of another GPU or version; name a new "
                    "file"
                )


def gpu_architecture() -> str:
    """Of the current GPU, as ``sm_89``."""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def _choose(flavour: str) -> str:
    """``auto`` is the full TensorRT where it can build, else TensorRT for RTX."""
    if flavour in FLAVOURS:
        return flavour
    if flavour != AUTO:
        raise UserError(f"unknown flavour {flavour!r}; choose one of auto, {', '.join(FLAVOURS)}")
    installed = [name for name, f in FLAVOURS.items() if find_spec(f.module) is not None]
    if not installed:
        raise UserError(
            "no TensorRT builder is installed; pip install 'hmc-fast[tensorrt-rtx]' (builds "
            "without a GPU) or 'hmc-fast[tensorrt]'"
        )
    usable = [n for n in installed if FLAVOURS[n].cross_builds or torch.cuda.is_available()]
    return (usable or installed)[0]


def _collecting_logger(trt: ModuleType) -> Any:
    """A logger that keeps the lines, silently; what a person can mend becomes one line."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # chosen at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

        def first_error(self) -> str:
            return _one_line(self.errors[0]) if self.errors else "no reason given"

    return Logger()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _strongly_typed(trt: ModuleType) -> int:
    """Flags of the network; a builder without the flag knows strongly typed networks only."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _network_tensors(network: Any) -> dict[str, dict[str, Any]]:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return {tensor.name: describe_tensor(tensor.dtype, tensor.shape) for tensor in inputs + outputs}


def describe_tensor(dtype: Any, shape: Any) -> dict[str, Any]:
    """A builder's dtype and shape in the sidecar's words."""
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
    return {
        "dtype": names.get(dtype.name, dtype.name),
        "shape": ["batch" if side < 0 else side for side in shape],
    }
