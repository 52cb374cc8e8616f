"""The model repository, read with the server's own schema."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from hmc_fast import UserError
from hmc_fast.export import OnnxExport, Profile, load, read_sidecar
from hmc_fast.export.engine import EngineOptions, write_engine
from hmc_fast.export.serving import ServingOptions, model_config, write_model_repository
from hmc_fast.export.sidecar import EngineInfo, FileIdentity, write_artefacts


def parse(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_an_onnx_repository(onnx_file: Path, tmp_path: Path) -> None:
    options = ServingOptions(version=3, instances=2, device="cpu", max_queue_delay_us=500)
    folder = write_model_repository(onnx_file, tmp_path / "repository", options)
    assert folder == tmp_path / "repository" / "hmc_net_resnet18"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "labels.txt", "3/model.onnx", "3/model.onnx.json"}
    assert (folder / "labels.txt").read_text().split() == ["rest", "malignant"]
    config = parse((folder / "config.pbtxt").read_text())
    assert config.name == folder.name
    assert config.platform == "onnxruntime_onnx"
    assert config.max_batch_size == 64
    (image,), (logits,) = config.input, config.output
    assert (image.name, image.data_type, list(image.dims)) == (
        "images",
        model_config_pb2.TYPE_FP32,
        [3, 64, 64],
    )
    assert (logits.name, list(logits.dims), logits.label_filename) == ("logits", [2], "labels.txt")
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [warm_up.batch_size for warm_up in config.model_warmup] == [1, 64]
    assert all(list(w.inputs["images"].dims) == [3, 64, 64] for w in config.model_warmup)
    assert load(folder / "3" / "model.onnx").sidecar == read_sidecar(onnx_file)


def test_an_engine_repository(onnx_file: Path, tmp_path: Path) -> None:
    graph = read_sidecar(onnx_file)
    info = EngineInfo("tensorrt", "10.13.0.35", ("sm_90",), False, False, graph.file)
    path = tmp_path / "model.engine"
    sidecar = replace(
        graph,
        kind="engine",
        engine=info,
        file=FileIdentity.of_bytes(path.name, b"a plan"),
        profile=Profile(1, 1, 1),
    )
    write_artefacts([(path, b"a plan", sidecar)])
    folder = write_model_repository(path, tmp_path / "repository", ServingOptions(name="hmc"))
    config = parse((folder / "config.pbtxt").read_text())
    assert (config.name, config.platform, config.max_batch_size) == ("hmc", "tensorrt_plan", 1)
    assert [warm_up.batch_size for warm_up in config.model_warmup] == [1]
    assert (folder / "1" / "model.plan").read_bytes() == b"a plan"
    with pytest.raises(UserError, match="an engine runs on a GPU"):
        write_model_repository(path, tmp_path / "other", ServingOptions(device="cpu"))


def test_what_the_server_could_not_run(
    onnx_file: Path, half_graph: OnnxExport, checkpoint: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "model.engine"
    write_engine(half_graph, checkpoint, engine, EngineOptions("tensorrt-rtx", ("sm_89",)))
    repository = tmp_path / "repository"
    with pytest.raises(UserError, match=r"of tensorrt-rtx; serve model.onnx instead"):
        write_model_repository(engine, repository, ServingOptions())
    assert not repository.exists()
    write_model_repository(engine.with_suffix(".onnx"), repository, ServingOptions())
    with pytest.raises(UserError, match="exists already"):
        write_model_repository(onnx_file, repository, ServingOptions())
    assert {path.name for path in repository.iterdir()} == {"hmc_film", "hmc_net_resnet18"}
    wrong = ({"device": "tpu"}, {"version": 0}, {"instances": 0}, {"name": "a/b"}, {"name": ""})
    for options in wrong:
        with pytest.raises(UserError, match="--"):
            ServingOptions(**options)  # type: ignore[arg-type]  # one field each


def test_a_repository_of_which_a_kill_left_one_model_is_completed(
    onnx_file: Path, tmp_path: Path
) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    folder = write_model_repository(onnx_file, tmp_path, ServingOptions())
    whole = files()
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="hmc_film: exists already"):
        write_model_repository(onnx_file, tmp_path, ServingOptions(readers=2))
    write_model_repository(onnx_file, tmp_path, ServingOptions())
    assert files() == whole


def test_the_schema_refuses_what_the_server_does_not_know(onnx_file: Path) -> None:
    text = model_config(read_sidecar(onnx_file), "m", ServingOptions())
    parse(text)
    with pytest.raises(text_format.ParseError):
        parse(text.replace("max_batch_size", "largest_batch"))
