"""A client for the film model of a Triton Inference Server: a film goes in, probabilities come out.

Reading, preprocessing and inference happen in the server; the film's file is sent as it is.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from hmc_fast.errors import UserError
from hmc_fast.serving.service import FILM_INPUT, FILM_MODEL, FILM_OUTPUT, FilmService, check_bytes

TIMEOUT_S = 120.0
_URL = re.compile(r"(http|https|grpc|grpcs)://([^/\s?#@]+)/?")
_REFUSED = ("400", "StatusCode.INVALID_ARGUMENT")


class FilmRefusedError(UserError):
    """The server is well, but the film is none that it takes; the message is the server's reason.

    It does not name the film, since the server does not know its name.
    """


class FilmClient:
    """A connection to a film model, for one thread.

    Args:
        server: ``http://host:port`` or ``grpc://host:port``; ``https`` and ``grpcs`` by TLS.
        model: the film model's name.
        timeout_s: for connecting, and for each answer, in seconds.

    Raises:
        UserError: ``server`` is no such address, tritonclient is missing, nobody answers, or the
            server has no film model of that name that is ready.
    """

    def __init__(
        self, server: str, *, model: str = FILM_MODEL, timeout_s: float = TIMEOUT_S
    ) -> None:
        parts = _URL.fullmatch(server)
        if parts is None:
            raise UserError(f"server {server}: needs http://host:port or grpc://host:port")
        self._server, self._name = server, model
        scheme, address = parts.groups()
        self._is_grpc = scheme.startswith("grpc")
        self._library = _tritonclient("grpc" if self._is_grpc else "http")
        self._deadline = {"client_timeout": timeout_s} if self._is_grpc else {}
        limits = (
            {} if self._is_grpc else {"connection_timeout": timeout_s, "network_timeout": timeout_s}
        )
        self._connection = self._asked(
            lambda: self._library.InferenceServerClient(
                address, ssl=scheme in ("https", "grpcs"), **limits
            )
        )
        try:
            self.service = self._read_service()
        except BaseException:
            self.close()
            raise

    def probabilities(self, film: Path | bytes) -> tuple[float, ...]:
        """The classes' probabilities of a film, in the order of ``service.class_names``.

        Args:
            film: a file, or its bytes.

        Raises:
            FilmRefusedError: the film is none, or too large.
            UserError: the file cannot be read, or the server fails.
        """
        try:
            content = film if isinstance(film, bytes) else film.read_bytes()
        except OSError as error:
            raise UserError(f"{film!s}: cannot be read ({error.strerror})") from None
        try:
            check_bytes(len(content))
        except UserError as error:
            raise FilmRefusedError(str(error)) from None
        tensor = self._library.InferInput(FILM_INPUT, [1, len(content)], "UINT8")
        tensor.set_data_from_numpy(np.frombuffer(content, np.uint8)[None])
        answer = self._asked(
            lambda: self._connection.infer(
                self._name,
                [tensor],
                outputs=[self._library.InferRequestedOutput(FILM_OUTPUT)],
                **self._deadline,
            )
        )
        return tuple(map(float, answer.as_numpy(FILM_OUTPUT)[0]))

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def __enter__(self) -> "FilmClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read_service(self) -> FilmService:
        source = f"{self._server}: the model {self._name}"
        if not self._asked(lambda: self._connection.is_model_ready(self._name, **self._deadline)):
            raise UserError(
                f"{source} is missing or not ready; export triton-server writes one, and --model "
                "names another"
            )
        if self._is_grpc:
            answer = self._asked(
                lambda: self._connection.get_model_config(
                    self._name, as_json=True, **self._deadline
                )
            )
            return FilmService.of_config(answer["config"], source)
        config = self._asked(lambda: self._connection.get_model_config(self._name))
        return FilmService.of_config(config, source)

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """The server's answer; what goes wrong between here and there as one line."""
        try:
            return ask()
        except Exception as error:  # what answers may be anything, and break the library anywhere
            status = getattr(error, "status", lambda: None)()
            message = getattr(error, "message", lambda: None)() or str(error) or "no answer"
            if status in _REFUSED:
                raise FilmRefusedError(message) from None
            raise UserError(
                f"{self._server}: no answer that can be used ({message}); is a Triton server "
                "running there, and is this the port of the protocol?"
            ) from None


def _tritonclient(protocol: str) -> ModuleType:
    try:
        if protocol == "grpc":
            import tritonclient.grpc as library
        else:
            import tritonclient.http as library
    except (
        ImportError,
        RuntimeError,
    ) as error:  # it turns an ImportError of its own into the other
        raise UserError(
            f"a client of Triton Inference Server needs tritonclient ({error}); "
            "pip install 'hmc-fast[serving]'"
        ) from None
    loaded: ModuleType = library
    return loaded
