"""Explanations: class activation maps, the scale map, pictures of them, and how good they are."""

from hmc_fast.explain.film import FilmExplanation, explain_film
from hmc_fast.explain.layers import default_layer_name, spatial_layers, target_layer
from hmc_fast.explain.methods import METHODS, ActivationMap, ScoreOptions, activation_map
from hmc_fast.explain.scale import ScaleMap, scale_map

__all__ = [
    "METHODS",
    "ActivationMap",
    "FilmExplanation",
    "ScaleMap",
    "ScoreOptions",
    "activation_map",
    "default_layer_name",
    "explain_film",
    "scale_map",
    "spatial_layers",
    "target_layer",
]
