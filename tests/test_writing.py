"""Files and folders appear whole or not at all, and nothing of others is touched."""

import os
from pathlib import Path

import pytest
from full_disk import room_for

from hmc_fast import UserError
from hmc_fast.data import Film, read_mias, write_phantoms
from hmc_fast.files import (
    mark_output,
    no_debris,
    refuse_overwrite,
    write_atomically,
    write_folder,
    write_text,
)
from hmc_fast.study import run_cross_validation
from hmc_fast.training import TrainingConfig


def test_a_link_in_the_way_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / f".a.txt.{os.getpid()}.tmp").symlink_to(victim)  # the name it once had
    write_text(tmp_path / "a.txt", "new")
    assert victim.read_text() == "kept"
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
        write_folder(tmp_path / "folder", lambda new: write_text(new / "b.txt", "x"))
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        (path if path.is_file() else path / "half").write_text("half")
        raise OSError(28, "No space left on device")

    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(UserError, match=r"a.txt: could not be written .No space left"):
        write_atomically(target, fail)
    with pytest.raises(UserError, match=r"folder: could not be written .No space left"):
        write_folder(tmp_path / "folder", fail)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("p" * 255), "x")
    with pytest.raises(UserError, match="File name too long"):
        write_text(tmp_path / ("p" * 256), "x")


def test_an_input_is_known_by_any_of_its_names(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.write_text("x")
    folder.mkdir()
    (folder / "inside").write_text("x")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    for output in (source, tmp_path / "link", tmp_path / "hard", folder / "inside"):
        with pytest.raises(UserError, match="is, or belongs to, the input"):
            refuse_overwrite(output, source, folder)
    for output in (tmp_path / "new", folder / "new"):
        refuse_overwrite(output, source, folder, tmp_path / "missing")


def test_bytes_of_names_that_are_no_text_are_spelled_out(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", os.fsdecode(b"film\xff \xc3\xa4"))
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "film\\udcff ä"


def test_a_mark_comes_with_the_first_file(tmp_path: Path) -> None:
    """So that what a killed command has made is known, and one that refuses changes nothing."""
    mark, folder = tmp_path / "mark", tmp_path / "out"
    folder.mkdir()

    def write(text: str) -> None:
        with no_debris():
            mark_output(folder, mark, "options")
            write_text(tmp_path / "elsewhere", "x")
            assert not mark.exists()
            write_text(folder / "a", text)

    with room_for(10), pytest.raises(UserError, match="File too large"):
        write("longer than there is room for")
    assert not mark.exists()
    write("short")
    assert mark.read_text() == "options"


def test_phantoms_leave_a_folder_of_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / ".out.partial"
    foreign.mkdir()
    (foreign / "notes").write_text("kept")
    write_phantoms(tmp_path / "out", 1, 64)
    assert (foreign / "notes").read_text() == "kept"
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    write_phantoms(Path(), 1, 64)
    assert len(read_mias(empty)) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "predictions.csv", "result.json"])
def test_a_training_overwrites_nothing_of_others(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path, name: str
) -> None:
    foreign = tmp_path / "resnet18" / "fold0" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text("kept")
    with pytest.raises(UserError, match=f"{name}: is of no training that began here"):
        run_cross_validation(["resnet18"], config, phantoms, tmp_path, fold_count=2)
    assert foreign.read_text() == "kept"
