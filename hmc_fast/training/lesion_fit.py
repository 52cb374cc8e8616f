"""A lesion head fitted to the circles of lesions: logistic regression over positions, convex.

Every cell of a film's features is an example: inside a malignant circle or not, inside any circle
or not, inside calcifications or not. The three regressions have no local optimum and no random
start, so that the same films give the same head (to the last bit on one machine with one number of
threads).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from hmc_fast.data import Film, Finding
from hmc_fast.data.frame import Frame
from hmc_fast.errors import UserError
from hmc_fast.models.lesion_head import CELL, COUNTED_MAPS, LESION_MAPS, LesionHead
from hmc_fast.training.features import FilmFeatures

PENALTY = 0.3
"""Half of it times the squared weights is added to the loss, on standardised features."""
BACKGROUND_POSITIONS = 100
"""Cells a film outside its lesions."""
RING = 2 * CELL
"""Pixels around a lesion that belong neither to it nor to the background."""
CALCIFICATION = "CALC"
LESION_STAGES = ("C3", "C4")
"""Stages whose features the head reads."""
MAX_STEPS = 500
GRADIENT_TOLERANCE = 1e-6
"""Of the largest entry; in fp32 the fit ends before, where the loss falls no further."""


@dataclass(frozen=True)
class FilmPositions:
    """Training examples from one film.

    ``cells [n, C]`` in fp16, ``targets [n, 3]`` (see :data:`LESION_MAPS`), bool, and ``weights
    [n]``: those of each lesion sum to one, and those of the background.
    """

    cells: Tensor
    targets: NDArray[np.bool_]
    weights: NDArray[np.float64]


def film_positions(features: FilmFeatures, film: Film, seed: int = 0) -> FilmPositions | None:
    """The lesions' cells and as many as 100 others of the breast, drawn by seed and film.

    None for a film with a lesion that has no circle, or whose circle lies outside the breast: there
    the lesion would be taken for background.
    """
    distances = [circle_distance(finding, features.frame) for finding in film.findings]
    inside: list[NDArray[np.bool_]] = []
    free = features.breast.numpy().copy()
    for distance in distances:
        if distance is None:
            return None
        lesion = (distance <= 0) & features.breast.numpy()
        if not lesion.any():
            return None
        inside.append(lesion)
        free &= distance > RING
    targets = _targets(film.findings, inside, free.shape)
    rng = np.random.default_rng([seed, int(features.digest[:16], 16)])
    places = np.flatnonzero(free)
    background = rng.permutation(places)[:BACKGROUND_POSITIONS]
    groups = [np.flatnonzero(lesion) for lesion in inside] + [np.sort(background)]
    index = np.concatenate(groups)
    return FilmPositions(
        cells=features.cells.flatten(1).T[torch.from_numpy(index)].contiguous(),
        targets=targets.reshape(len(LESION_MAPS), -1).T[index],
        weights=np.concatenate([np.full(len(group), 1 / max(1, len(group))) for group in groups]),
    )


def labelled_positions(features: FilmFeatures, film: Film, seed: int = 0) -> FilmPositions:
    """As many as 100 cells of the breast, each with the class of the whole film, circles unused.

    What a fit has to learn from where nobody drew circles.
    """
    rng = np.random.default_rng([seed, int(features.digest[:16], 16)])
    index = np.sort(rng.permutation(np.flatnonzero(features.breast.numpy()))[:BACKGROUND_POSITIONS])
    severities = {finding.severity for finding in film.findings}
    kinds = {finding.kind for finding in film.findings}
    classes = ["malignant" in severities, bool(film.findings), CALCIFICATION in kinds]
    return FilmPositions(
        cells=features.cells.flatten(1).T[torch.from_numpy(index)].contiguous(),
        targets=np.tile(np.array(classes), (len(index), 1)),
        weights=np.full(len(index), 1 / max(1, len(index))),
    )


def fit_lesion_head(
    films: Sequence[FilmPositions],
    c3_channels: int,
    c4_channels: int,
    penalty: float = PENALTY,
    stages: Sequence[str] = LESION_STAGES,
) -> LesionHead:
    """The head with the least penalised loss on the films; standardisation is part of its weights.

    In each of the three regressions the lesions' examples weigh as much as all others. Mean and
    standard deviation of the features are those of the films given. A map of which the films show
    no lesion is zero throughout, and so are the weights of a stage that is not among ``stages``.

    Raises :class:`UserError` where no film has a malignant lesion.
    """
    if not any(film.targets[:, 0].any() for film in films):
        raise UserError(
            "no film of the training set has a malignant lesion with a circle; the lesion head "
            "learns from circles"
        )
    part = {
        "C3": range(2 * c3_channels),
        "C4": range(2 * c3_channels, 2 * c3_channels + c4_channels),
    }
    columns = torch.tensor([column for stage in stages for column in part[stage]])
    cells = torch.cat([film.cells[:, columns] for film in films]).float()
    targets = np.concatenate([film.targets for film in films])
    weights = balanced(targets, np.concatenate([film.weights for film in films]))
    mean = cells.mean(0)
    std = cells.std(0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    slopes, offsets = minimise_loss(cells.sub_(mean).div_(std), targets, weights, penalty)
    head = LesionHead(c3_channels, c4_channels)
    folded = slopes / std.double()[:, None]
    weight = torch.zeros(head.maps.weight.shape, dtype=torch.float64)
    weight[:, columns] = folded.T[:, :, None, None]
    head.maps.load_state_dict({"weight": weight, "bias": offsets - mean.double() @ folded})
    return head


def balanced(targets: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[n, outputs]``: of each output, the positives' weights sum to ½ and the negatives' too.

    All zero for an output that lacks one of them.
    """
    result = np.zeros(targets.shape)
    for output, positive in enumerate(targets.T):
        totals = weights[positive].sum(), weights[~positive].sum()
        if min(totals) > 0:
            result[:, output] = np.where(positive, weights / totals[0], weights / totals[1]) / 2
    return result


def minimise_loss(
    features: Tensor, targets: NDArray[np.bool_], weights: NDArray[np.float64], penalty: float
) -> tuple[Tensor, Tensor]:
    """Slopes ``[C, outputs]`` and offsets ``[outputs]``, fp64, of independent regressions.

    Minimises ``Σ weight · log(1 + exp(∓ logit)) + penalty / 2 · ‖slopes‖²`` by L-BFGS (Byrd et al.
    1995), as scikit-learn's ``LogisticRegression(C=1 / penalty)`` does.

    Args:
        features: ``[n, C]``, standardised; products are computed in their dtype.
        targets: ``[n, outputs]``.
        weights: ``[n, outputs]``.
        penalty: the offsets carry none.
    """
    channels, outputs = features.shape[1], targets.shape[1]
    signs = torch.from_numpy(np.where(targets, 1.0, -1.0)).to(features.dtype)
    importance = torch.from_numpy(weights).to(features.dtype)

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = torch.from_numpy(flat).view(channels + 1, outputs)
        slopes = parameters[:-1]
        logits = by_columns(features, slopes.to(features.dtype))
        margins = signs * (logits + parameters[-1].to(features.dtype))
        value = -(importance * torch.nn.functional.logsigmoid(margins)).double().sum()
        slope = -importance * signs * torch.sigmoid(-margins)
        products = by_columns(features.T, slope)
        gradient = torch.cat([products.double(), slope.double().sum(0, keepdim=True)])
        gradient[:-1] += penalty * slopes
        value = value + penalty / 2 * slopes.square().sum()
        return float(value), gradient.flatten().numpy()

    start = np.zeros((channels + 1) * outputs)
    options = {"maxiter": MAX_STEPS, "gtol": GRADIENT_TOLERANCE, "ftol": 0.0}
    result = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    parameters = torch.from_numpy(result.x).view(channels + 1, outputs)
    return parameters[:-1], parameters[-1]


def by_columns(matrix: Tensor, few: Tensor) -> Tensor:
    """``matrix @ few`` where ``few`` has some three columns.

    As one product, that of a transposed matrix takes over ten times as long on an AMD EPYC.
    """
    return torch.stack([matrix @ column for column in few.T.contiguous()], dim=1)


@torch.inference_mode()
def film_scores(
    head: LesionHead,
    features: FilmFeatures,
    readouts: Sequence[str],
    counted: int = COUNTED_MAPS,
) -> dict[str, float]:
    """A film's score by every one of ``readouts``, from cached features.

    ``counted`` as in :meth:`LesionHead.score`.
    """
    maps = head.maps(features.cells[None].float())
    breast = features.breast[None, None]
    return {readout: float(head.score(maps, breast, readout, counted)) for readout in readouts}


def circle_distance(finding: Finding, frame: Frame) -> NDArray[np.float64] | None:
    """Pixels from every cell's centre to the finding's circle, negative inside; None without one.

    The cell at the centre of a circle counts as inside however small the circle is.
    """
    if finding.x is None or finding.y is None or finding.radius is None:
        return None
    row, column, radius = frame.circle(finding.x, finding.y, finding.radius)
    rows = np.arange(frame.height // CELL)[:, None] * CELL + (CELL - 1) / 2
    columns = np.arange(frame.width // CELL)[None, :] * CELL + (CELL - 1) / 2
    distance = np.hypot(rows - row, columns - column) - radius
    distance[(abs(rows - row) <= CELL / 2) & (abs(columns - column) <= CELL / 2)] = -radius
    return np.asarray(distance)


def _targets(
    findings: Sequence[Finding], inside: Sequence[NDArray[np.bool_]], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """``[3, h, w]``: the cells of malignant lesions, of any, and of calcifications."""
    targets = np.zeros((len(LESION_MAPS), *shape), np.bool_)
    for finding, lesion in zip(findings, inside, strict=True):
        targets[0] |= lesion & (finding.severity == "malignant")
        targets[1] |= lesion
        targets[2] |= lesion & (finding.kind == CALCIFICATION)
    return targets
