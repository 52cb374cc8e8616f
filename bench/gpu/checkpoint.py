"""Write a checkpoint of a small untrained HMC-Net with open gates, and phantoms for it.

``checkpoint.py CHECKPOINT [FILMS]``; a folder of films that is there is left as it is.
"""

import sys
from pathlib import Path

import torch

from hmc_fast import create_model
from hmc_fast.checkpoint import CheckpointMetadata, save_checkpoint
from hmc_fast.data import Preprocessing, write_phantoms
from hmc_fast.files import make_folder


def main() -> None:
    """Write them."""
    torch.manual_seed(0)
    model = create_model("hmc_net_resnet18").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    classes = ("rest", "malignant")
    preprocessing = Preprocessing.square(224)
    metadata = CheckpointMetadata(model.config, "malignant", classes, preprocessing, {}, {})
    path, *films = map(Path, sys.argv[1:])
    make_folder(path.parent)
    save_checkpoint(path, model, metadata)
    for folder in films:
        if not folder.exists():  # a folder of phantoms is whole or not there
            write_phantoms(folder, patients=12, size=256)


if __name__ == "__main__":
    main()
