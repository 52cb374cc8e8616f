"""Under which heading the help lists an option: the same one in every command."""

from copy import copy
from typing import Annotated, Any, get_args, get_origin

from typer.models import OptionInfo

PANELS = {
    "Films": (
        "data allow-missing allow-raw max-pixels annotations calibration calibration-films films "
        "include-seen folds hold-out repeats protocol copies folds-file split task bilateral level"
    ),
    "Image": "size also-size width native crop-breast face-left average-flips clahe",
    "Model": (
        "model models checkpoint weights trunk threshold at-specificity layer class method "
        "score-channels steps sanity-films name version nested recipes attention seeds film-model"
    ),
    "Training": (
        "epochs head-epochs train-trunk dropout learning-rate schedule warmup-epochs weight-decay "
        "augment balance lesion-weight crop-epochs seed logger"
    ),
    "Graph or engine": (
        "runtime batch-sizes quantise gpu-memory target flavour timing-cache version-compatible "
        "hardware-compatible plugin check require-engine max-logit max-auc record instances "
        "max-queue-delay readers"
    ),
    "Measurement": (
        "preset case peer pass part retry graphs seconds minutes profile metric kernel "
        "defaults-only"
    ),
    "Machine": ("device devices num-nodes backend engine precision batch-size workers chunk job"),
    "Network": "server host port ae allow send-to tls-cert tls-key tls-ca connections timeout",
    "Output": "out maps dicom-out queue queue-films max-mib list list-jobs json config",
}
"""Names of options without dashes in front."""

_PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names.split()}


def with_panel(parameter: str, annotation: Any) -> Any:
    """The annotation of a command's parameter, with the panel of its option."""
    if get_origin(annotation) is not Annotated:
        return annotation
    kind, info = get_args(annotation)[:2]
    if not isinstance(info, OptionInfo):
        return annotation
    # Within Annotated, typer takes the first name for a default until it reads the function.
    declared = [str(text) for text in (info.default, *(info.param_decls or ()))]
    names = [text.split("/")[0][2:] for text in declared if text.startswith("--")]
    name = names[0] if names else parameter.replace("_", "-")
    placed = copy(info)  # options are shared between commands
    placed.rich_help_panel = _PANEL_OF.get(name)
    return Annotated[kind, placed]
