"""The film model, as Triton's Python backend runs it: imported inside the server alone.

It reads and prepares films and leaves inference to the graph or engine beside it in the repository
(business logic scripting), which keeps the backend, the device and the batching it is made for.
Tensors are exchanged by DLPack: the backend's own way to NumPy needs NumPy 1 in some releases.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
import triton_python_backend_utils as server
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from hmc_fast.errors import UserError
from hmc_fast.evaluation.predict import film_logits
from hmc_fast.serving.film_bytes import image_of_bytes
from hmc_fast.serving.service import FILM_INPUT, FILM_OUTPUT, FilmService


class TritonPythonModel:
    """Films to probabilities; the server calls these methods by name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the model's configuration; an error here keeps the model from being loaded."""
        if not sys.executable:
            raise UserError("the server's Python has no program, which decodes films; set PATH")
        self.service = FilmService.of_config(json.loads(args["model_config"]), args["model_name"])
        # Each instance is a process of its own; their number is what uses the processors.
        torch.set_num_threads(1)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """An answer for each request; what is wrong with one film is that film's answer."""
        answers: dict[int, Any] = {}
        images: dict[int, Tensor] = {}
        for index, request in enumerate(requests):
            try:
                images[index] = image_of_bytes(_content(request), self.service)
            except UserError as error:
                answers[index] = _refusal(str(error), server.TritonError.INVALID_ARG)
            except Exception as error:  # one film must not take its batch with it
                reason = f"the film cannot be read ({type(error).__name__})"
                answers[index] = _refusal(reason, server.TritonError.INVALID_ARG)
        if images:
            answers |= dict(zip(images, self._answers(list(images.values())), strict=True))
        return [answers[index] for index in range(len(requests))]

    def _answers(self, images: Sequence[Tensor]) -> list[Any]:
        missing = max(0, self.service.smallest_batch - len(images))
        batch = torch.stack([*images, *[images[-1]] * missing])
        try:
            logits = film_logits(self._logits, batch, self.service.preprocessing)
        except UserError as error:
            return [_refusal(str(error), server.TritonError.INTERNAL)] * len(images)
        rows = logits.double().softmax(1).float()[: len(images)]
        return [
            server.InferenceResponse([server.Tensor.from_dlpack(FILM_OUTPUT, row[None].clone())])
            if row.isfinite().all()
            # The film's fault as far as a caller can tell: others get their answers.
            else _refusal("the output is not finite", server.TritonError.INVALID_ARG)
            for row in rows
        ]

    def _logits(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of images ``[B, 3, H, W]``, by the other model."""
        request = server.InferenceRequest(
            model_name=self.service.model,
            model_version=self.service.version,
            requested_output_names=[self.service.logits],
            inputs=[server.Tensor.from_dlpack(self.service.images, images.contiguous())],
        )
        answer = request.exec()
        if answer.has_error():
            raise UserError(f"{self.service.model}: {answer.error().message()}")
        return from_dlpack(answer.output_tensors()[0].to_dlpack()).cpu()


def _content(request: Any) -> memoryview:
    """The one film of a request."""
    (tensor,) = (t for t in request.inputs() if t.name() == FILM_INPUT)
    films = from_dlpack(tensor.to_dlpack()).cpu()
    if len(films) != 1:
        raise UserError(f"holds {len(films)} films; send each in a request, the server batches")
    return films[0].numpy().data


def _refusal(message: str, kind: Any) -> Any:
    return server.InferenceResponse(error=server.TritonError(message, kind))
