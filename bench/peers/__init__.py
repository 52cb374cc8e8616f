"""The registry of peers.

To add a peer: write a file with a :class:`Peer` in it, which says its name, family, colour and one
line of help, and add it to :data:`PEERS`. The order is that of tables, plots and help texts.
"""

from collections.abc import Sequence

import torch

from hmc_fast.bench.cases import Kind
from hmc_fast.bench.peers.compiled import COMPILED
from hmc_fast.bench.peers.cpu import CPU, CPU_PREPARED
from hmc_fast.bench.peers.eager import EAGER
from hmc_fast.bench.peers.flash_attention import FLASH_ATTENTION_3, FLASH_ATTENTION_4
from hmc_fast.bench.peers.flex import FLEX
from hmc_fast.bench.peers.onnxruntime import ONNXRUNTIME
from hmc_fast.bench.peers.openvino import OPENVINO
from hmc_fast.bench.peers.peer import Family, Peer
from hmc_fast.bench.peers.sdpa import SDPA, SDPA_KERNELS
from hmc_fast.bench.peers.tensorrt import TENSORRT, TENSORRT_RTX
from hmc_fast.bench.peers.triton import TRITON, TRITON_COMPILED
from hmc_fast.errors import UserError

PEERS: tuple[Peer, ...] = (
    TRITON,
    TRITON_COMPILED,
    CPU,
    CPU_PREPARED,
    FLASH_ATTENTION_3,
    FLASH_ATTENTION_4,
    *SDPA_KERNELS,
    SDPA,
    FLEX,
    COMPILED,
    EAGER,
    ONNXRUNTIME,
    OPENVINO,
    TENSORRT,
    TENSORRT_RTX,
)


def peer(name: str) -> Peer:
    """The peer of a name. Raises :class:`UserError` for an unknown one."""
    for known in PEERS:
        if known.name == name:
            return known
    raise UserError(f"unknown peer {name!r}; choose of {', '.join(p.name for p in PEERS)}")


def peer_names(*kinds: Kind) -> tuple[str, ...]:
    """Names of the peers that do cases of any of ``kinds``."""
    return tuple(p.name for p in PEERS if any(p.does(kind) for kind in kinds))


def family_names(*families: Family) -> tuple[str, ...]:
    """Names of the peers of ``families``."""
    return tuple(p.name for p in PEERS if p.family in families)


def choose_peers(names: Sequence[str] | None, kind: Kind, device: torch.device) -> tuple[Peer, ...]:
    """The peers that do cases of ``kind``: those named, else all but the slow ones on a CPU.

    Raises :class:`UserError` for an unknown name.
    """
    able = [p for p in PEERS if p.does(kind)]
    if names is None:
        return tuple(p for p in able if device.type != "cpu" or kind not in p.slow_on_cpu)
    chosen = [peer(name) for name in names]
    return tuple(p for p in able if p in chosen)
