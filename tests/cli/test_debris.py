"""A command that fails leaves nothing behind."""

from pathlib import Path

import pytest

from hmc_fast.cli.app import run
from hmc_fast.errors import UserError
from hmc_fast.files import make_folder, no_debris

FAILING = (
    "explain {film} --checkpoint {model} --out {out} --class cancer",
    "explain {film} --checkpoint {model} --out {out} --layer layer9",
    "localise {model} --data {data} --out {out} --steps 1",
    "export onnx missing.safetensors --out {out}/m.onnx",
    "export onnx {model} --out {out}/m.onnx --size 33",
    "export kernels {model} --out {out} --target sm_11",
    "export triton-server missing.onnx --out {out}",
    "bench --data {data} --out {out} --size 32 --folds 50",
    "bench kernels --case nothing@32 --out {out}",
    "cv --data {data} --out {out} --model resnet18 --folds 50",
    "cv --data {data} --out {out} --model resnet18 --folds 3 --warmup-epochs 10",
    "train --data {data} --out {out} --model resnet18 --folds 3 --warmup-epochs 10",
    "study report missing --out {out}",
    "phantoms --out {out} --size 1",
    "predict missing.pgm --checkpoint {model} --out {out}/s.csv",
    "evaluate --checkpoint {model} --data missing --out {out}/s.csv",
)


@pytest.mark.parametrize("line", FAILING, ids=lambda line: " ".join(line.split()[:2]))
def test_no_folder_is_left(
    line: str, checkpoint: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    named = {
        "film": phantom_folder / "mdb001.pgm",
        "model": checkpoint,
        "data": phantom_folder,
        "out": tmp_path / "new" / "out",
    }
    assert run([word.format(**named) for word in line.split()]) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_there_or_has_something_stays(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()

    @no_debris()
    def fail() -> None:
        make_folder(there)
        make_folder(tmp_path / "kept" / "deep")
        (tmp_path / "kept" / "file").touch()
        make_folder(tmp_path / "gone" / "deep")
        raise UserError("stop")

    with pytest.raises(UserError):
        fail()
    assert {path.name for path in tmp_path.iterdir()} == {"there", "kept"}
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"file"}
    with no_debris():
        make_folder(tmp_path / "new")
    assert (tmp_path / "new").is_dir()
