"""What a model says of one film, as its results repeat it."""

from dataclasses import dataclass

from hmc_fast.prediction.decision import Decision
from hmc_fast.prediction.levels import predicted_class


@dataclass(frozen=True)
class Reading:
    """One film's probabilities, and where they come from.

    Args:
        model: its name in the registry.
        checkpoint: SHA-256 of the checkpoint's file.
        task: what the classes are told apart for.
        class_names: the last is the positive one.
        probabilities: of the classes, in 0…1.
        decision: from which probability on the last class is predicted.
        rule: how the film was scored, see :mod:`hmc_fast.evaluation.bilateral`.
    """

    model: str
    checkpoint: str
    task: str
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]
    decision: Decision
    rule: str

    @property
    def predicted(self) -> str:
        return self.class_names[predicted_class(self.probabilities, self.decision.threshold)]
