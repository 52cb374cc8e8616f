"""``hmc-fast explain``: what moved the model, as pictures."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.choices import choice
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.film_limit import limits_films
from hmc_fast.cli.output import console, print_json, print_table, progress_bar
from hmc_fast.errors import UserError

if TYPE_CHECKING:
    from hmc_fast.checkpoint import LoadedModel
    from hmc_fast.data import Film
    from hmc_fast.explain import FilmExplanation

INFO_FILE = "Info.txt"
PAGE_FILE = "index.html"
CONTACT_FILE = "contact_sheet.png"
SUMMARY_FILE = "explanations.json"


@takes_config
@limits_films
def explain(
    files: Annotated[list[Path], typer.Argument(help="PGM, PNG or DICOM films.")],
    checkpoint: options.Checkpoint,
    out: options.Out = Path("explanations"),
    method: Annotated[
        list[str] | None,
        choice(
            "method",
            options.METHODS,
            help="Map to draw; repeatable; by default the lesion map of a model that has one, else "
            "gradcam.",
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Module whose feature map is used; the last by default.")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class to explain; the predicted one by default.")
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="Info.txt of MIAS; by default the one beside a film, if any."),
    ] = None,
    score_channels: Annotated[
        int | None,
        typer.Option(help="Score-CAM on this many channels of largest variance instead of all."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Masked films a forward pass of Score-CAM.")
    ] = None,
    maps: Annotated[bool, typer.Option(help="Save the maps as FILM.npz as well.")] = False,
    dicom_out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for DICOM results of DICOM films: a structured report and overlays."
        ),
    ] = None,
    backend: options.Backend = "auto",
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Maps of films: lesions, Grad-CAM, Grad-CAM++, Score-CAM, the scales that attention looked at.

    Writes a picture per film, a contact sheet of several, index.html and explanations.json into
    --out. Score-CAM takes a forward pass per channel, 2048 for ResNet50: minutes a film on a CPU.

    Example: [bold]hmc-fast explain mias/mdb028.pgm --checkpoint runs/a/model.safetensors[/bold]
    """
    from hmc_fast.checkpoint import LoadedModel, load_model
    from hmc_fast.devices import default_device
    from hmc_fast.explain import ScoreOptions, explain_film
    from hmc_fast.explain.film import check_methods, usual_methods
    from hmc_fast.explain.methods import SCALE, TITLES
    from hmc_fast.explain.page import PageEntry, render_page
    from hmc_fast.explain.pictures import contact_sheet, film_figure, save_png
    from hmc_fast.files import make_folder, write_json, write_text
    from hmc_fast.inference import folded
    from hmc_fast.reporting import png_base64

    chosen = check_methods(method or [])
    films = list(_films(dict.fromkeys(files), annotations))
    names = _file_names(films)
    written = _written(names, maps)
    _check_outputs(out, written, files, checkpoint)
    effective.keep_in(out, *map(escape, written))
    if dicom_out is not None:
        _check_dicom_out(dicom_out, names, files)
    device = default_device()
    model, metadata = load_model(checkpoint, backend=backend, device=device)
    loaded = LoadedModel(folded(model, keep=[layer] if layer else []), metadata)
    methods = chosen or usual_methods(loaded.model)
    if dicom_out is not None and set(methods) <= {SCALE}:
        raise UserError("--dicom-out: the scale map has no overlay; name another --method as well")
    make_folder(out)
    explanations: list[FilmExplanation] = []
    entries = []
    scored = "scorecam" in methods
    with progress_bar("channels" if scored else "films") as report:
        for film, name in zip(films, names, strict=True):

            def on_batch(done: int, total: int, name: str = name) -> None:
                report(f"Score-CAM of {name}", done, total * len(films))

            score = ScoreOptions(batch_size, score_channels, on_batch)
            explanation = explain_film(
                loaded, film, methods, class_name=class_name, layer=layer, score=score
            )
            figure = film_figure(explanation)
            save_png(figure, out / f"{name}.png")
            entries.append(PageEntry(explanation, png_base64(figure)))
            if maps:
                _save_maps(out / f"{name}.npz", explanation)
            if dicom_out is not None:
                _write_dicom(dicom_out, name, loaded, checkpoint, explanation)
            explanations.append(explanation)
            if not scored:
                report("explaining", 1, len(films))
    if len(explanations) > 1:
        save_png(contact_sheet(explanations), out / CONTACT_FILE)
    title = f"Explanations of {len(films)} film{'s' if len(films) > 1 else ''}"
    facts = [
        f"{loaded.metadata.model.name}, task {loaded.metadata.task}, checkpoint {checkpoint.name}"
    ]
    if scored and score_channels is not None:
        facts.append(f"Score-CAM on the {score_channels} channels of largest variance, not on all")
    write_text(out / PAGE_FILE, render_page(title, facts, entries))
    result = {
        "model": loaded.metadata.model.to_json(),
        "checkpoint": str(checkpoint),
        "methods": list(methods),
        "score_channels": score_channels,
        "films": [explanation.to_json() for explanation in explanations],
    }
    write_json(out / SUMMARY_FILE, result)
    if as_json:
        print_json(result)
        return
    header = ["film", "predicted", "explained", *(TITLES[name] for name in methods)]
    print_table(header, [_row(explanation, methods) for explanation in explanations])
    for note in dict.fromkeys(note for e in explanations for note in e.notes):
        console.print(note, style="yellow", markup=False)
    console.print(f"pictures {out}\npage     {out / PAGE_FILE}", markup=False, highlight=False)
    if dicom_out is not None:
        console.print(f"DICOM    {dicom_out}", markup=False, highlight=False)
    console.print("Research software: these are no diagnoses.", style="dim")


def _films(files: Iterable[Path], annotations: Path | None) -> Iterator["Film"]:
    """The films with their findings: from ``annotations``, or the Info.txt beside a MIAS film."""
    from hmc_fast.data.identity import film_of
    from hmc_fast.data.mias import is_film_id, read_findings

    known = {} if annotations is None else {annotations: read_findings(annotations)}
    for path in files:
        info = annotations or path.parent / INFO_FILE
        is_mias = is_film_id(path.stem)
        if is_mias and info not in known and info.is_file():
            known[info] = read_findings(info)
        findings = known.get(info, {}).get(path.stem, ()) if is_mias else ()
        yield film_of(path, findings)


def _file_names(films: Sequence["Film"]) -> list[str]:
    """A name for each film's files: its own; numbered where another film, or the sheet, has it."""
    count = Counter([film.film_id for film in films] + [Path(CONTACT_FILE).stem])
    names: list[str] = []
    for number, film in enumerate(films, start=1):
        name = film.film_id
        while count[name] > 1 or name in names:
            name = f"{number:03d}-{name}"
        names.append(name)
    return names


def _written(names: Sequence[str], maps: bool) -> list[str]:
    """Names of the files that are written for films of these names."""
    suffixes = (".png", ".npz") if maps else (".png",)
    pictures = [f"{name}{suffix}" for name in names for suffix in suffixes]
    return [*pictures, CONTACT_FILE, PAGE_FILE, SUMMARY_FILE]


def _check_outputs(
    out: Path, written: Sequence[str], films: Sequence[Path], checkpoint: Path
) -> None:
    """Raises :class:`UserError` where a file to write is one that is read, or lies beside films.

    Pictures in a folder of films would be taken for films.
    """
    from hmc_fast.files import refuse_overwrite

    if not out.exists():
        return
    for name in written:
        refuse_overwrite(out / name, checkpoint, *films)
    if any(path.resolve().parent == out.resolve() for path in films):
        raise UserError(f"--out {out}: holds the films; name a folder for the pictures alone")


def _check_dicom_out(folder: Path, names: Sequence[str], films: Sequence[Path]) -> None:
    """Raises :class:`UserError` where films have no study, or results would lie beside them.

    Or where results would replace what is none.
    """
    from hmc_fast.dicom_results.source import check_is_dicom, check_libraries

    check_libraries()
    from hmc_fast.dicom_results.writing import check_replaceable

    for name in names:
        check_replaceable(folder, name)
    for path in films:
        check_is_dicom(path)
    if any(path.resolve().parent == folder.resolve() for path in films):
        raise UserError(f"--dicom-out {folder}: holds the films; name a folder for the results")


def _write_dicom(
    folder: Path,
    name: str,
    loaded: "LoadedModel",
    checkpoint: Path,
    explanation: "FilmExplanation",
) -> None:
    """The film's report and an overlay of each of its maps; see :mod:`hmc_fast.dicom_results`."""
    from hmc_fast.data import film_image
    from hmc_fast.dicom_results.reading import Reading
    from hmc_fast.dicom_results.writing import results_of, write_results
    from hmc_fast.evaluation.bilateral import OWN_RULE
    from hmc_fast.prediction.decision import decide
    from hmc_fast.prediction.manifest import file_digest

    metadata = loaded.metadata
    reading = Reading(
        model=metadata.model.name,
        checkpoint=file_digest(checkpoint),
        task=metadata.task,
        class_names=metadata.class_names,
        probabilities=explanation.probabilities,
        decision=decide([metadata], None, compare=False),
        rule=OWN_RULE,
    )
    path = explanation.film.path
    film = film_image(path, metadata.preprocessing)
    write_results(folder, name, results_of(path, film, reading, explanation.maps))


def _save_maps(path: Path, explanation: "FilmExplanation") -> None:
    import numpy as np

    from hmc_fast.files import write_atomically

    arrays = {activation.method: activation.values for activation in explanation.maps}
    if explanation.scale is not None:
        arrays["scale"] = explanation.scale.shares

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes no dict

    write_atomically(path, write)


def _row(explanation: "FilmExplanation", methods: Sequence[str]) -> list[str]:
    from hmc_fast.reporting import percent

    values = explanation.to_json()
    cells = dict.fromkeys(methods, "–")
    for activation in values["maps"]:
        if activation["note"]:
            cells[activation["method"]] = activation["note"].partition(":")[0]
        elif activation["pointing_game"] is not None:
            hit = "hits" if activation["pointing_game"] >= 0.5 else "misses"
            cells[activation["method"]] = (
                f"{hit} the lesion, {percent(activation['energy_in_lesion'])} inside"
            )
        elif values["annotated"]:
            cells[activation["method"]] = f"drawn, for {activation['class']}, not scored"
        else:
            cells[activation["method"]] = "drawn, no annotation"
    if values["scale"]:
        shares = values["scale"]["film_shares"].items()
        cells["scale"] = ", ".join(f"{name} {percent(share)}" for name, share in shares)
    probability = max(explanation.probabilities)
    return [
        explanation.film.film_id,
        f"{explanation.predicted} {probability:.3f}",
        explanation.explained,
        *cells.values(),
    ]
