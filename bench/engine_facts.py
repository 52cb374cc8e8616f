"""What is known of an engine that was built, whether or not it can run here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hmc_fast.schema import STRICT

if TYPE_CHECKING:  # records are read where nothing is exported
    from hmc_fast.export.builders import Builder, BuiltEngine
    from hmc_fast.export.onnx_export import EngineGraph


@dataclass(frozen=True)
class EngineFacts:
    """An engine as its builder tells of it.

    ``activation_bytes`` are those of ``batch`` images; ``fused_attentions`` of ``attentions`` run
    as one kernel each, in the form ``attention``. None where the builder does not say.
    """

    __pydantic_config__ = STRICT
    builder: str
    targets: list[str]
    batch: int
    engine_bytes: int
    activation_bytes: int | None
    weight_bytes: int | None
    attentions: int | None
    fused_attentions: int | None
    attention: str | None

    def __str__(self) -> str:
        parts = [f"{self.builder} for {', '.join(self.targets)}", f"{_mib(self.engine_bytes)} MiB"]
        if self.activation_bytes is not None:
            parts.append(f"activations {_mib(self.activation_bytes)} MiB at batch {self.batch}")
        if self.attentions is not None and self.fused_attentions is not None:
            parts.append(f"{self.fused_attentions} of {self.attentions} attentions fused")
        if self.attention is not None:
            parts.append(f"form {self.attention}")
        return ", ".join(parts)


def facts_of(
    builder: "Builder",
    targets: Sequence[str],
    batch: int,
    graph: "EngineGraph",
    built: "BuiltEngine",
) -> EngineFacts:
    """What ``builder`` tells of the engine that it ``built`` from ``graph``."""
    from hmc_fast.export.engine import fused_attentions

    return EngineFacts(
        f"{builder.flavour.name} {builder.version}",
        list(targets),
        batch,
        len(built.content),
        built.log.activation_bytes,
        built.log.weight_bytes,
        graph.attentions,
        fused_attentions(graph, built.log),
        graph.form,
    )


class BuiltNotRunError(Exception):
    """An engine was built that cannot run on this machine; ``facts`` tell of it."""

    def __init__(self, facts: EngineFacts, why: str) -> None:
        super().__init__(f"not run: {why}; {facts}")
        self.facts = facts


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f}"
