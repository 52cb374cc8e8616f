"""``bench model``: whole models, inference and training step."""


def _both(*cases: str) -> tuple[str, ...]:
    return tuple(f"{model}@{case}" for case in cases for model in ("hmc_net", "resnet50"))


MODEL_CASES: dict[str, tuple[str, ...]] = {
    "cpu": _both("96x1", "160x1", "224x1", "96x4", "96x2/training"),
    "gpu": _both("1024x8", "224x1", "512x16/training", "224x64", "1024x1", "224x8", "512x8"),
}
"""Most important first: where a time budget runs out, the last ones are left."""
