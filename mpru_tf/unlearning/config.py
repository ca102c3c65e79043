"""The settings of UNSIR, and presets of them."""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from mpru_tf.errors import DataError, explain


@dataclass(frozen=True)
class UnsirConfig:
    """How UNSIR learns its noise, impairs and repairs. The defaults are those of the paper and its authors' notebook.

    ======================= ========= ==================================================================================
    noise
    noise_batch             256       examples of noise per forgotten class
    noise_learning_rate     0.1       of Adam
    noise_rounds            5         rounds ...
    noise_steps             8         ... of so many steps each
    noise_penalty           0.1       times the mean squared norm of the noise, beside the negative cross-entropy
    impair
    noise_batches           20        how often each class's batch of noise is seen in an epoch
    impair_learning_rate    0.02      of Adam
    impair_epochs           1         passes over noise and retained examples, mixed
    repair
    repair_learning_rate    0.01      of Adam
    repair_epochs           1         passes over the retained examples
    both
    retained_per_class      1000      examples of each retained class that are used, at most
    batch_size              256       examples per step
    ======================= ========= ==================================================================================

    These are ours:

    Attributes:
        batch_norm: 'train', as the authors do: batch normalisation works with the statistics of each batch in impair
            and repair and keeps moving averages of them, with a momentum of at most 0.9 (PyTorch's default; with
            Keras' 0.99, the averages would still be those of the noise after an epoch of repair). 'frozen': it works
            with the statistics that it has, and dropout is off; on a CIFAR-10 ResNet-20 that failed at the
            paper's rates and at a twentieth of them, as noise is far from these statistics. The noise is learned with
            them in either case.
        retained_floor: accuracy on the retained classes. Impair ends early at the first look that finds less; repair
            always runs in full, as its first steps bring forgotten classes back along with the others; and if there
            is less in the end, the result is refused. None: no looks.
        look_every: steps of impair between looks.
        seed: of the noise's start, the choice of retained examples, their order, and dropout.

    Raises:
        DataError: a value is out of range.

    Source: Tarun, Chundawat, Mandal, Kankanhalli, "Fast Yet Effective Machine Unlearning", 2021, arXiv 2111.08947.
    """

    noise_batch: int = 256
    noise_learning_rate: float = 0.1
    noise_rounds: int = 5
    noise_steps: int = 8
    noise_penalty: float = 0.1
    noise_batches: int = 20
    impair_learning_rate: float = 0.02
    impair_epochs: int = 1
    repair_learning_rate: float = 0.01
    repair_epochs: int = 1
    retained_per_class: int = 1000
    batch_size: int = 256
    batch_norm: str = "train"
    retained_floor: float | None = None
    look_every: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        for name, value in asdict(self).items():
            if name.endswith("rate") and not (value > 0 and math.isfinite(value)):
                problems.append(f"{name} {value} (valid: above 0)")
            elif name in _COUNTS and value < 1:
                problems.append(f"{name} {value} (valid: 1 or more)")
            elif name in ("repair_epochs", "seed") and value < 0:
                problems.append(f"{name} {value} (valid: 0 or more)")
        if not (self.noise_penalty >= 0 and math.isfinite(self.noise_penalty)):
            problems.append(f"noise_penalty {self.noise_penalty} (valid: 0 or more)")
        if self.batch_norm not in ("train", "frozen"):
            problems.append(f"batch_norm {self.batch_norm!r} (valid: 'train', 'frozen')")
        if self.retained_floor is not None and not 0 < self.retained_floor <= 1:
            problems.append(f"retained_floor {self.retained_floor} (valid: above 0, at most 1)")
        if problems:
            raise DataError(explain("UNSIR cannot work with these settings.", received="; ".join(problems)))

    @classmethod
    def gentle(cls, **changes: Any) -> UnsirConfig:
        """A tuned preset that costs the retained classes less: much lower learning rates, and three epochs of repair.

        On a CIFAR-10 ResNet-20 (accuracy 0.92) that forgets classes 0 and 2, accuracy on the forgotten classes goes
        from 0.889 to 0.000 and on the others from 0.921 to 0.894 (5,000 test examples, one seed;
        benchmarks/unsir.py). The paper's rates cost the networks tried there 0.27 to 0.59.

        Args:
            changes: settings to have otherwise.
        """
        return cls(**{**_GENTLE, **changes})

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


_GENTLE = {"impair_learning_rate": 0.005, "repair_learning_rate": 0.001, "repair_epochs": 3}


class Preset(str, enum.Enum):
    """Settings by name."""

    paper = "paper"
    gentle = "gentle"

    def config(self, **changes: Any) -> UnsirConfig:
        """The settings, with changes."""
        return UnsirConfig(**changes) if self is Preset.paper else UnsirConfig.gentle(**changes)


_COUNTS = {
    *("noise_batch", "noise_rounds", "noise_steps", "noise_batches", "impair_epochs"),
    *("retained_per_class", "batch_size", "look_every"),
}
assert {entry.name for entry in fields(UnsirConfig)} >= _COUNTS
