"""What the node says: no patient, no UID of a study or film, only what it did for whom."""

import logging
import sys
import threading
import warnings

LOGGER = logging.getLogger("hmc_fast.node")
KEY_LENGTH = 12
"""Of a film's key in a line; the key itself is a digest."""
LINE_LENGTH = 200


def start_logging() -> None:
    """Lines on stderr; the libraries, whose lines repeat headers, are silent in this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    threading.excepthook = _end_of_thread
    for library in ("pynetdicom", "pydicom", "highdicom"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    for module in ("pydicom", "pynetdicom", "highdicom"):
        warnings.filterwarnings("ignore", module=module)


def short(key: str) -> str:
    return key[:KEY_LENGTH]


def said(text: object) -> str:
    """Text from a peer as a line may hold it."""
    return "".join(c if c.isprintable() else "?" for c in str(text))[:LINE_LENGTH].strip()


def _end_of_thread(what: threading.ExceptHookArgs) -> None:
    """One line for a thread that a peer's bytes have ended; a traceback might repeat them."""
    LOGGER.error("an association's thread ended by %s", what.exc_type.__name__)
