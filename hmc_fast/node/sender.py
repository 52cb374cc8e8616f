"""The sending side: results to the archive, again and again until they are there."""

from pydicom.uid import (
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE
from pynetdicom.association import Association

from hmc_fast.node.log import LOGGER, said, short
from hmc_fast.node.settings import NodeSettings
from hmc_fast.node.spool import Spool

RESULT_CLASSES = (ComprehensiveSRStorage, SecondaryCaptureImageStorage)
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
SUCCESS = 0x0000
WARNINGS = range(0xB000, 0xC000)
"""Stored, though not to the letter."""
ANSWER_S = 60.0
CONNECTION_S = 10.0


class Sender:
    """Sends what is scored; a result that was sent twice has the same UID and the same bytes."""

    def __init__(self, settings: NodeSettings, spool: Spool) -> None:
        self._settings = settings
        self._spool = spool
        self._entity = AE(settings.ae)
        self._entity.acse_timeout = self._entity.dimse_timeout = ANSWER_S
        self._entity.network_timeout = ANSWER_S
        self._entity.connection_timeout = CONNECTION_S
        for result_class in RESULT_CLASSES:
            self._entity.add_requested_context(result_class, SYNTAXES)

    def send_all(self) -> bool:
        """Send all that waits; whether nothing is left to try again."""
        keys = self._spool.scored()
        if not keys:
            return True
        peer, tls = self._settings.peer, self._settings.tls
        association = self._entity.associate(
            peer.host,
            peer.port,
            ae_title=peer.ae,
            tls_args=(tls.client, peer.host) if tls else None,
        )
        if not association.is_established:
            LOGGER.warning("%s takes no association; %d films wait", said(peer.ae), len(keys))
            return False
        try:
            arrived = [self._send(association, key) for key in keys]
            return all(arrived)
        finally:
            association.release()

    def _send(self, association: Association, key: str) -> bool:
        for path in self._spool.results(key):
            if not association.is_established:
                return False
            try:
                answer = association.send_c_store(path)
            except (RuntimeError, ValueError) as error:  # ended meanwhile, or the class refused
                LOGGER.warning("results of %s not sent: %s", short(key), said(error))
                return False
            status = answer.get("Status")
            if status != SUCCESS and status not in WARNINGS:
                shown = "no answer" if status is None else f"status 0x{status:04X}"
                LOGGER.warning("results of %s not taken: %s", short(key), shown)
                return False
        self._spool.sent(key)
        LOGGER.info("results of %s arrived", short(key))
        return True
