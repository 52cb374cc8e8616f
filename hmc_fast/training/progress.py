"""What a training tells of itself while it runs: a line an epoch, or the bar's label."""

from collections.abc import Mapping

from hmc_fast.progress import Progress


class TrainingProgress:
    """Reports the films of each step under a label that carries the last epoch's loss and AUC."""

    def __init__(self, label: str, epochs: int, total: int, report: Progress) -> None:
        self.label = self.text = label
        self.epochs = epochs
        self.total = total
        self.report = report

    def films(self, count: int) -> None:
        """So many films more were trained on."""
        self.report(self.text, count, self.total)

    def epoch(self, row: Mapping[str, float]) -> None:
        """An epoch ended, with this row of the learning curve."""
        words = {"train_loss": "loss", "val_loss": "held-out loss", "val_auc": "held-out AUC"}
        values = ", ".join(f"{words[k]} {row[k]:.4f}" for k in words if k in row)
        self.text = f"{self.label}, epoch {int(row['epoch']) + 1} of {self.epochs}: {values}"
        self.report(self.text, 0, self.total)
