"""The running node: receives, scores and sends at the same time, until it is told to stop."""

import signal
import threading
from collections.abc import Callable
from types import FrameType

from hmc_fast.dicom_results.writing import write_results
from hmc_fast.errors import UserError
from hmc_fast.node.log import LOGGER, said, short
from hmc_fast.node.receiver import Receiver
from hmc_fast.node.scoring import FilmReader
from hmc_fast.node.sender import Sender
from hmc_fast.node.settings import NodeSettings
from hmc_fast.node.spool import Spool, Waiting

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Between attempts to send, doubled each time."""
DISK_PAUSE_S = 10.0
RESULT_NAME = "film"


class Node:
    """One film is scored at a time, in one thread; another sends results."""

    def __init__(self, settings: NodeSettings, reader: FilmReader) -> None:
        self._settings = settings
        self._reader = reader
        self._spool = Spool(settings.queue, settings.capacity)
        self._stop = threading.Event()
        self._new_film, self._new_result = threading.Event(), threading.Event()
        self._broken = False

    def run(self, on_ready: Callable[[int], object]) -> None:
        """Until SIGINT or SIGTERM; ``on_ready`` gets the port once films can come.

        The film at hand is finished; what waits is there at the next start. A second Ctrl-C does
        not wait for the film.

        Raises :class:`UserError` where the address cannot be used, or a part of the node failed.
        """
        try:
            receiver = Receiver(self._settings, self._spool, self._new_film)
            threads = [
                threading.Thread(target=self._guarded, args=[work], daemon=True)
                for work in (self._score_films, self._send_results)
            ]
            self._on_signals()
            for thread in threads:
                thread.start()
            on_ready(receiver.server.server_address[1])
            self._stop.wait()
            receiver.close()
            for event in (self._new_film, self._new_result):
                event.set()
            for thread in threads:
                thread.join()
        finally:
            self._spool.close()
        if self._broken:
            raise UserError("the node stopped after an error that it does not know; see its log")

    def _on_signals(self) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)

    def _guarded(self, work: Callable[[], None]) -> None:
        """A part that fails ends the node: it would take films that nobody scores or sends."""
        try:
            work()
        except Exception as error:  # its text may repeat a header
            LOGGER.critical("stopped: %s in %s", type(error).__name__, work.__name__.strip("_"))
            self._broken = True
            self._stop.set()

    def _goes_on(self, news: threading.Event) -> bool:
        """Whether to look for work, with ``news`` of more to come.

        They are cleared before the stop is looked for, since :meth:`run` sets them after it: in the
        other order, a stop between the two would be slept through.
        """
        news.clear()
        return not self._stop.is_set()

    def _score_films(self) -> None:
        while self._goes_on(self._new_film):
            film = self._spool.take()
            if film is None:
                self._new_film.wait()
            else:
                self._score(film)

    def _score(self, film: Waiting) -> None:
        try:
            results, picture = self._reader.read(film.path)
        except UserError as error:
            LOGGER.warning("film %s has no score: %s", short(film.key), said(error))
            self._spool.fail(film, said(error))
            return
        except Exception as error:  # one film must not stop the node, whatever is wrong with it
            LOGGER.error("film %s has no score: %s", short(film.key), type(error).__name__)
            self._spool.fail(film, type(error).__name__)
            return
        try:
            self._spool.finish(
                film, lambda folder: write_results(folder, RESULT_NAME, results), picture
            )
        except UserError as error:
            LOGGER.error("film %s waits: %s", short(film.key), said(error))
            self._spool.put_back(film)
            self._stop.wait(DISK_PAUSE_S)
            return
        LOGGER.info("film %s is scored", short(film.key))
        self._new_result.set()

    def _send_results(self) -> None:
        sender, pause = Sender(self._settings, self._spool), FIRST_PAUSE_S
        while self._goes_on(self._new_result):
            if sender.send_all():
                pause = FIRST_PAUSE_S
                self._new_result.wait()
            else:
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
