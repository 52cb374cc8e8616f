"""Stands in for Triton's ONNX Runtime backend, which PyPI's server lacks."""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import triton_python_backend_utils as server


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        (self.input,) = (tensor["name"] for tensor in config["input"])
        (self.output,) = (tensor["name"] for tensor in config["output"])
        folder = Path(args["model_repository"])
        folder = folder if (folder / args["model_version"]).is_dir() else folder.parent
        path = folder / args["model_version"] / "model.onnx"
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, settings)

    def execute(self, requests: list[Any]) -> list[Any]:
        parts = [torch.from_dlpack(r.inputs()[0].to_dlpack()) for r in requests]
        (rows,) = self.session.run([self.output], {self.input: torch.cat(parts).numpy()})
        split = torch.from_numpy(rows).split([len(part) for part in parts])
        return [
            server.InferenceResponse([server.Tensor.from_dlpack(self.output, part.clone())])
            for part in split
        ]
