"""What a person names, and the films that it stands for."""

import os
from pathlib import Path

import pytest
from pydicom.fileset import FileSet

from hmc_fast import UserError
from hmc_fast.prediction.manifest import make_manifest
from hmc_fast.prediction.sources import Source, find_sources


def paths(*named: Path) -> list[Path]:
    return [source.path for source in find_sources(named)]


def test_a_folder_stands_for_its_films_below_it_in_order(pictures: Path, archive: Path) -> None:
    (pictures / ".hidden.pgm").write_bytes(b"P5")
    (archive / "a" / "notes.txt").write_text("no film")
    assert paths(pictures) == [pictures / f"mdb{n:03d}.pgm" for n in range(1, 11)]
    expected = [archive / "a" / f"IM{n}" for n in range(4)] + [archive / "b" / "IM9"]
    assert paths(archive) == expected


def test_patterns_and_repeats(pictures: Path, archive: Path) -> None:
    first = pictures / "mdb001.pgm"
    assert paths(first, pictures / "mdb00[12].*", first) == [first, pictures / "mdb002.pgm"]
    assert paths(first, pictures / ".." / "pictures" / "mdb001.pgm") == [first]
    assert len(paths(archive.parent / "**" / "IM*")) == 5
    assert len(paths(pictures.parent / "pic*")) == 10
    odd = pictures / "film[1].pgm"
    odd.write_bytes(first.read_bytes())
    assert paths(odd) == [odd]


def test_a_table_goes_before_the_headers(archive: Path) -> None:
    table = archive / "films.csv"
    table.write_text(
        "Path,patient,side,view,label\na/IM0,X,left,cc,normal\na/IM1,,,,normal\na/IM0,X,l,cc,\n"
    )
    assert find_sources([table]) == [
        Source(archive / "a/IM0", "X", "L", "CC"),
        Source(archive / "a/IM1", None, None, None),
    ]


def test_a_dicomdir_stands_for_the_films_that_it_lists(archive: Path, tmp_path: Path) -> None:
    fileset = FileSet()
    for number in range(2):
        fileset.add(archive / "a" / f"IM{number}")
    (tmp_path / "media").mkdir()
    fileset.write(tmp_path / "media")
    listed = paths(tmp_path / "media" / "DICOMDIR")
    assert len(listed) == 2
    assert set(listed) == set(paths(tmp_path / "media"))


def test_what_is_not_there_is_said_before_anything_is_read(pictures: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.pgm"
    with pytest.raises(UserError, match=r"gone.pgm: no such file \(and 1 more"):
        find_sources([pictures, gone, tmp_path / "gone.dcm"])
    with pytest.raises(UserError, match="holds no film"):
        find_sources([tmp_path / "*.dcm"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no film"):
        find_sources([tmp_path / "empty"])
    (tmp_path / "DICOMDIR").write_bytes(b"x")
    with pytest.raises(UserError, match="no readable DICOMDIR"):
        find_sources([tmp_path / "DICOMDIR"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.pgm\n", "lacks the column path"),
        ("path,side\na.pgm,up\n", "line 2: side 'up' is neither"),
        ("path\nnone.pgm\n", "none.pgm: no such file"),
        ("path,side\n,L\n", "line 2: has no path"),
        ("path\n", "holds no film"),
        ("path\n\udcff\n", "no CSV table in UTF-8"),
        ("path,side\na.pgm\n", "line 2: has more or fewer cells than the header"),
        ("path,side\na.pgm,L,x\n", "line 2: has more or fewer cells than the header"),
        ("path,side,path\na.pgm,L,x\n", "doubled column 'path'"),
        (f"path\n{'x' * 131_073}\n", "no CSV table in UTF-8"),
        ("path\na\0.pgm\n", "line 2: holds a zero byte"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "films.csv"
    table.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        find_sources([table])


def test_a_folder_with_pipes_devices_and_links_in_circles(pictures: Path) -> None:
    """What is named like a film is reported with the reason, and nothing of it is waited for."""
    for film in pictures.iterdir():
        if film.stem > "mdb002":
            film.unlink()
    os.mkfifo(pictures / "pipe")
    os.mkfifo(pictures / "pipe.pgm")
    links = {"zero.dcm": "/dev/zero", "circle.pgm": "circle.pgm", "gone.png": "nowhere",
             "circle": "circle", "up": "."}  # fmt: skip
    for name, target in links.items():
        (pictures / name).symlink_to(target)
    entries = make_manifest(find_sources([pictures]), {}).entries
    assert {Path(entry.path).name: entry.problem for entry in entries} == {
        "mdb001.pgm": "",
        "mdb002.pgm": "",
        "pipe.pgm": "is a folder, a pipe or a device, no file",
        "zero.dcm": "is a folder, a pipe or a device, no file",
        "circle.pgm": "cannot be read (Too many levels of symbolic links)",
        "gone.png": "cannot be read (No such file or directory)",
    }
