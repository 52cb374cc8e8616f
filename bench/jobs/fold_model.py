"""A fold's model as a peer runs it, and its peak memory in a process of its own.

That process imports no more than it needs, because what it imports counts.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hmc_fast.bench.measuring.memory import process_peak_mib
from hmc_fast.bench.peers import peer as peer_of
from hmc_fast.bench.peers.peer import ModuleVariant, Peer
from hmc_fast.checkpoint import load_model
from hmc_fast.devices import autocast, precision_dtype
from hmc_fast.models import FilmModel, ModelConfig, build_model


class FoldModel:
    """A model as a variant runs it at a precision, whose parameters can be exchanged.

    A runtime's graph is built anew for other parameters and another batch size; it takes the dtype
    itself, where PyTorch's calls run in autocast around fp32 parameters.
    """

    def __init__(
        self,
        peer: Peer,
        variant: ModuleVariant,
        config: ModelConfig,
        state: Mapping[str, Tensor],
        device: torch.device,
        precision: str,
    ) -> None:
        self.peer = peer
        self.variant = variant
        self.precision = precision
        self.device = device
        self.model: FilmModel = build_model(config, variant.backend)
        self.model.to(device).eval()
        if not peer.trainable:
            self.model.to(precision_dtype(precision))
        self._calls: dict[torch.Size | None, Callable[[Tensor], Tensor]] = {}
        self.load(state)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy other parameters of the same model into place."""
        self.model.load_state_dict(state)
        if not self.peer.trainable:
            self._calls.clear()

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` on the device to logits ``[B, classes]``."""
        key = None if self.peer.trainable else images.shape
        if not self.peer.trainable:
            images = images.to(precision_dtype(self.precision))
        if key not in self._calls:
            self._calls[key] = self.variant.prepare(self.model, images)
        with torch.inference_mode(), autocast(self.device, self._autocast):
            return self._calls[key](images)

    @property
    def _autocast(self) -> str:
        return self.precision if self.peer.trainable else "fp32"


def main() -> None:
    """Entry point of the memory probe's process; prints the peak in MiB."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    args = parser.parse_args()
    peer = peer_of(args.peer)
    variant = next(v for v in peer.models if v.name == args.variant)
    loaded = load_model(args.checkpoint)
    state, config = loaded.model.state_dict(), loaded.metadata.model
    call = FoldModel(peer, variant, config, state, args.device, args.precision)
    prepared = loaded.metadata.preprocessing.at_height(args.size)
    del loaded, state
    images = torch.rand(1, 3, prepared.height, prepared.width, device=args.device)
    print(process_peak_mib(lambda: call(images), args.device))


if __name__ == "__main__":
    main()
