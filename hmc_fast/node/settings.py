"""Who the node is, who may store, where results go, and how much it takes."""

import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from hmc_fast.errors import UserError

AE_LENGTH = 16
LARGEST_PORT = 2**16 - 1


class Peer(NamedTuple):
    """Where results go."""

    ae: str
    host: str
    port: int


@dataclass(frozen=True)
class Tls:
    """Contexts of both directions; each side shows a certificate that the other one checks."""

    server: ssl.SSLContext
    client: ssl.SSLContext


@dataclass(frozen=True)
class NodeSettings:
    """A node.

    Args:
        ae: its own AE title.
        host: the address that it listens on.
        port: the TCP port that it listens on.
        allowed: AE titles that may store and ask for an echo.
        peer: where results go.
        queue: the folder of films and results that wait.
        capacity: films that may wait, those whose results wait included.
        object_bytes: largest film.
        tls: None for connections in the clear.
    """

    ae: str
    host: str
    port: int
    allowed: tuple[str, ...]
    peer: Peer
    queue: Path
    capacity: int
    object_bytes: int
    tls: Tls | None

    @property
    def exposed(self) -> bool:
        """Whether others than this machine reach the node, in the clear."""
        try:
            return self.tls is None and not ip_address(self.host).is_loopback
        except ValueError:
            return self.tls is None and self.host != "localhost"


def ae_title(text: str, option: str) -> str:
    """Raises :class:`UserError` for what is no AE title."""
    title = text.strip()
    if not 1 <= len(title) <= AE_LENGTH or not title.isascii() or not title.isprintable():
        raise UserError(f"{option} {text!r}: needs 1 to {AE_LENGTH} characters of ASCII")
    if "\\" in title:
        raise UserError(f"{option} {text!r}: has a backslash, which DICOM does not allow")
    return title


def peer_of(text: str) -> Peer:
    """``"ARCHIVE@host:104"``; raises :class:`UserError` for anything else."""
    title, at, address = text.rpartition("@")
    host, colon, port = address.rpartition(":")
    if not (at and colon and host and port.isdecimal() and 1 <= int(port) <= LARGEST_PORT):
        raise UserError(f"--send-to {text}: needs AE@host:port, such as ARCHIVE@127.0.0.1:4242")
    return Peer(ae_title(title, "--send-to"), host.strip("[]"), int(port))


def tls_of(certificate: Path | None, key: Path | None, authority: Path | None) -> Tls | None:
    """TLS from PEM files, or None without any.

    Raises :class:`UserError` where one is missing or cannot be used.
    """
    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None or authority is None:
        raise UserError("TLS needs all of --tls-cert, --tls-key and --tls-ca")
    try:
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
        server.verify_mode = ssl.CERT_REQUIRED
        client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authority)
        for context in (server, client):
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or error
        raise UserError(f"--tls-cert, --tls-key or --tls-ca cannot be used ({reason})") from None
    return Tls(server, client)
