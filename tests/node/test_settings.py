"""What a node is told, and what is refused in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from nodes import settings

from hmc_fast.errors import UserError
from hmc_fast.node.settings import Peer, ae_title, peer_of, tls_of
from hmc_fast.node.spool import Spool


def test_a_peer_is_named_by_title_host_and_port() -> None:
    assert peer_of("ARCHIVE@pacs.local:104") == Peer("ARCHIVE", "pacs.local", 104)
    assert peer_of("A@[::1]:104") == Peer("A", "::1", 104)


@pytest.mark.parametrize(
    "text", ["ARCHIVE", "ARCHIVE@host", "@host:1", "A@host:0", "A@:1", "A@h:x"]
)
def test_other_texts_are_no_peer(text: str) -> None:
    with pytest.raises(UserError, match="--send-to"):
        peer_of(text)


@pytest.mark.parametrize("text", ["", " ", "A" * 17, "Ä", "A\\B", "A\nB"])
def test_other_texts_are_no_title(text: str) -> None:
    with pytest.raises(UserError, match="--allow"):
        ae_title(text, "--allow")


def test_tls_is_whole_or_off(tmp_path: Path) -> None:
    assert tls_of(None, None, None) is None
    with pytest.raises(UserError, match="all of --tls-cert, --tls-key and --tls-ca"):
        tls_of(tmp_path / "cert", None, tmp_path / "ca")
    with pytest.raises(UserError, match="cannot be used"):
        tls_of(tmp_path / "cert", tmp_path / "key", tmp_path / "ca")


@pytest.mark.parametrize(
    ("host", "exposed"),
    [
        ("127.0.0.1", False),
        ("::1", False),
        ("localhost", False),
        ("192.168.1.2", True),
        ("pacs", True),
    ],
)
def test_a_node_knows_whether_others_reach_it(tmp_path: Path, host: str, exposed: bool) -> None:
    assert settings(tmp_path, host=host).exposed == exposed


def test_a_queue_has_one_node(tmp_path: Path, spool: Spool) -> None:
    with pytest.raises(UserError, match="another node uses it"):
        Spool(spool.folder, 1)


def test_a_node_that_cannot_start_says_why_in_one_line(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    serve = ("serve", "dicom", "--checkpoint", tmp_path / "none.safetensors", "--allow", "A")
    assert "--send-to x: needs AE@host:port" in fails(*serve, "--send-to", "x")
    assert "no such file" in fails(*serve, "--send-to", "A@h:1")
