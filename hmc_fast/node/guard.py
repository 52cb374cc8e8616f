"""Bounds on what a peer may cost, which pynetdicom itself does not set.

It reads a PDU of any announced length, waits for its bytes for ever, does the TLS handshake in the
thread that accepts connections, and counts associations only after they have asked for one.
"""

import ssl
import threading
import time
from socketserver import BaseServer
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.transport import (
    AssociationSocket,
    RequestHandler,
    ThreadedAssociationServer,
)

from hmc_fast.node.log import LOGGER

LARGEST_PDU = 2**17
"""What we announce as the most that we take at a time, in bytes."""
PDU_BYTES = 2 * LARGEST_PDU
"""An association's request may be longer than what it agrees on."""
PDU_S = 30.0
"""In which a PDU that has begun must be here."""
HANDSHAKE_S = 10.0
CONNECTIONS = 32
READ_BYTES = 2**16


class GuardedSocket(AssociationSocket):
    """A connection that is dropped where a PDU or a message is too large, or a PDU too slow."""

    def __init__(self, association: Association, connection: Any, message_bytes: int) -> None:
        super().__init__(association, client_socket=connection)
        self._message_bytes = message_bytes
        self._taken = 0

    def message_ended(self) -> None:
        """The bytes so far were those of a message that is answered."""
        self._taken = 0

    def recv(self, nr_bytes: int) -> bytearray:
        """As the base class; raises ``OSError``, which ends the association."""
        self._taken += nr_bytes
        if nr_bytes > PDU_BYTES:
            raise self._dropped(f"a PDU of {nr_bytes} bytes was announced")
        if self._taken > self._message_bytes:
            raise self._dropped(f"a message has more than {self._message_bytes} bytes")
        assert self.socket is not None  # pynetdicom reads connected sockets alone
        deadline = time.monotonic() + PDU_S
        read = bytearray()
        while len(read) < nr_bytes:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._dropped("a PDU took too long")
            self.socket.settimeout(left)
            try:
                part = self.socket.recv(min(READ_BYTES, nr_bytes - len(read)))
            except TimeoutError:
                raise self._dropped("a PDU took too long") from None
            if not part:
                break
            read += part
        return read

    def _dropped(self, reason: str) -> OSError:
        LOGGER.warning("dropped: %s", reason)
        return OSError(reason)


class _Handler(RequestHandler):
    """One connection, in a thread of its own."""

    server: "GuardedServer"

    def handle(self) -> None:
        self.request.settimeout(HANDSHAKE_S)
        if self.server.tls is not None:
            try:
                self.request = self.server.tls.wrap_socket(self.request, server_side=True)
            except OSError as error:
                LOGGER.warning("dropped: no TLS (%s)", type(error).__name__)
                self.request.close()
                return
        super().handle()

    def _create_association(self) -> Association:
        association = super()._create_association()
        # The plain socket has announced the connection; the guarded one does so again.
        association.dul.event_queue.get_nowait()
        association.dul.socket = GuardedSocket(association, self.request, self.server.message_bytes)
        return association


class GuardedServer(ThreadedAssociationServer):
    """Listens for ``entity``; takes ``message_bytes`` at most for a message.

    TLS is used where ``tls`` is given.
    """

    daemon_threads = True

    def __init__(
        self,
        entity: AE,
        address: tuple[str, int],
        handlers: list[EventHandlerType],
        message_bytes: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(
            entity,
            address,
            entity.ae_title,
            entity.supported_contexts,
            evt_handlers=handlers,
            request_handler=_Handler,
        )
        self.message_bytes = message_bytes
        self.tls = tls
        self._connecting = threading.Semaphore(CONNECTIONS)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether one more connection is taken; asked before anything is read from it."""
        free = len(self.active_associations) < CONNECTIONS
        free = free and self._connecting.acquire(blocking=False)
        if not free:
            LOGGER.warning("dropped: too many connections")
        return free

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As the base class; the connection then counts as an association, or is gone."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connecting.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line for what ends a connection, where the base class prints a traceback."""
        LOGGER.warning("dropped: a connection could not be served")

    def shutdown(self) -> None:
        """Stop listening; the base class expects a server that its AE has started."""
        BaseServer.shutdown(self)
        self.server_close()
