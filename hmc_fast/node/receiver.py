"""The listening side: C-ECHO, and C-STORE of films into the spool."""

import threading
from typing import cast

from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event, EventHandlerType

from hmc_fast.data.dicom import CODECS
from hmc_fast.errors import UserError
from hmc_fast.node.guard import LARGEST_PDU, GuardedServer, GuardedSocket
from hmc_fast.node.log import LOGGER, said, short
from hmc_fast.node.settings import NodeSettings
from hmc_fast.node.spool import Admission, Spool

FILM_CLASSES = (
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    ComputedRadiographyImageStorage,
)
"""Images for processing are not among them: they are another kind of input."""
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, *CODECS]
ECHO = UID("1.2.840.10008.1.1")
"""Verification, PS3.4 annex A."""
ASSOCIATIONS = 8
IDLE_S = 60.0
REQUEST_S = 10.0
SUCCESS, OUT_OF_RESOURCES, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
"""Status of PS3.4 table B.2-1."""


class Receiver:
    """Listens from its making to :meth:`close`.

    ``on_film`` is called after a film was taken.

    Raises :class:`UserError` where the address cannot be used.
    """

    def __init__(self, settings: NodeSettings, spool: Spool, on_film: threading.Event) -> None:
        self._spool = spool
        self._on_film = on_film
        entity = AE(settings.ae)
        entity.require_called_aet = True
        entity.require_calling_aet = list(settings.allowed)
        entity.maximum_associations = ASSOCIATIONS
        entity.maximum_pdu_size = LARGEST_PDU
        entity.acse_timeout = entity.dimse_timeout = REQUEST_S
        entity.network_timeout = IDLE_S
        entity.add_supported_context(ECHO)
        for film_class in FILM_CLASSES:
            entity.add_supported_context(film_class, SYNTAXES)
        handlers: list[EventHandlerType] = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, self._on_echo),
            (evt.EVT_REJECTED, self._on_rejected),
            (evt.EVT_ABORTED, self._on_aborted),
        ]
        try:
            self.server = GuardedServer(
                entity,
                (settings.host, settings.port),
                handlers,
                settings.object_bytes,
                settings.tls.server if settings.tls else None,
            )
        except OSError as error:
            address = f"{settings.host}:{settings.port}"
            raise UserError(f"{address}: cannot be listened on ({error.strerror})") from None
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; associations are aborted."""
        self.server.shutdown()
        for association in self.server.active_associations:
            association.abort(block=False)

    def _on_echo(self, event: Event) -> int:
        cast(GuardedSocket, event.assoc.dul.socket).message_ended()
        return SUCCESS

    def _on_store(self, event: Event) -> int:
        cast(GuardedSocket, event.assoc.dul.socket).message_ended()
        sender = said(event.assoc.requestor.ae_title)
        try:
            uid = str(cast(C_STORE, event.request).AffectedSOPInstanceUID or "")
            admission, key = self._spool.offer(event.encoded_dataset(), uid)
        except UserError as error:
            LOGGER.warning("refused a film of %s: %s", sender, said(error))
            return NOT_UNDERSTOOD
        except OSError as error:
            LOGGER.error("could not store a film of %s: %s", sender, error.strerror)
            return OUT_OF_RESOURCES
        except Exception as error:  # whatever a hostile message breaks, the node goes on
            LOGGER.error("refused a film of %s: %s", sender, type(error).__name__)
            return NOT_UNDERSTOOD
        if admission is Admission.FULL:
            LOGGER.warning("no place for a film of %s", sender)
            return OUT_OF_RESOURCES
        LOGGER.info("film %s of %s: %s", short(key), sender, admission.value)
        self._on_film.set()
        return SUCCESS

    def _on_rejected(self, event: Event) -> None:
        LOGGER.warning("rejected an association of %s", said(event.assoc.requestor.ae_title))

    def _on_aborted(self, event: Event) -> None:
        LOGGER.warning("an association of %s was aborted", said(event.assoc.requestor.ae_title))
