"""Take pictures of every kind of report in Chromium: draw_screens.py FOLDER.

The reports of the benchmark and of studies are those of committed records. The explanations are of
phantoms, by a small model that is trained here for it; no film of a person is shown.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from hmc_fast.bench.record import read_record
from hmc_fast.bench.report.pages import write_reports
from hmc_fast.cli.app import run
from hmc_fast.errors import UserError
from hmc_fast.study import compare, read_study, write_study_reports

RESULTS = Path(__file__).parents[1] / "bench" / "results"
WIDTH, HEIGHT = 1280, 1500
LIMIT_BYTES = 150_000
DARK_TOO = "study"
DARK = ("--blink-settings=preferredColorScheme=0",)


def bench_page(name: str) -> Callable[[Path], Path]:
    """The report of a committed record of the benchmark."""
    record = read_record(RESULTS / f"{name}.jsonl")
    return lambda folder: write_reports([(name, record)], folder)[1]


def study_page(folder: Path) -> Path:
    """The report of the committed study."""
    record = read_study(RESULTS / "study" / "mias-seven-models.jsonl")
    return write_study_reports(compare([record]), folder)[1]


def explain_page(folder: Path) -> Path:
    """Explanations of a phantom patient with a lesion, by a small model fitted to phantoms."""
    with chdir(folder):  # so that the page names files without this machine's folders
        for line in (
            "phantoms --out phantoms --patients 18 --size 256",
            "train --data phantoms --out model --model hmc_net_resnet18_lesions "
            "--size 256 --width 256 --folds 3",
            "explain phantoms/mdb005.pgm phantoms/mdb006.pgm --out maps "
            "--checkpoint model/model.safetensors --method lesions",
        ):
            if run(line.split()) != 0:
                raise UserError(f"hmc-fast {line}: failed")
    return folder / "maps" / "index.html"


PAGES = {
    "bench": bench_page("mias-hmc_net_lesions-512-cpu"),
    "kernels": bench_page("cpu-kernels"),
    "study": study_page,
    "explain": explain_page,
}


def shoot(page: Path, picture: Path, *, dark: bool = False, width: int = WIDTH) -> None:
    """A WebP of the top of ``page``, as good as :data:`LIMIT_BYTES` allow."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise UserError("no Chromium on the path; install the package chromium")
    raw = page.with_suffix(".png")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += [*(DARK if dark else ()), f"--window-size={width},{HEIGHT}", f"--screenshot={raw}"]
    command = [chromium, *options, page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(raw) as image:
        for quality in (85, 70, 55, 40):
            image.convert("RGB").save(picture, quality=quality, method=6)
            if picture.stat().st_size <= LIMIT_BYTES:
                return
    raise UserError(f"{picture}: larger than {LIMIT_BYTES} bytes")


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        with TemporaryDirectory() as folder:
            page = make(Path(folder))
            shoot(page, out / f"{name}.webp")
            if name == DARK_TOO:
                shoot(page, out / f"{name}-dark.webp", dark=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"draw_screens.py: {error}")
