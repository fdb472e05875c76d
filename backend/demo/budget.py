"""How much of a document the demo uses, so that it ends in time on two cores whatever the document's size."""

from dataclasses import dataclass, field
from typing import Any

MOST_EXAMPLES = 80
FEWEST_EXAMPLES = 8
# What the embedded model gets out of a chunk of CHUNK_TOKENS tokens before it repeats itself.
EXAMPLES_PER_CHUNK = 4
CHUNK_TOKENS = 300


@dataclass(frozen=True, slots=True)
class Budget:
    """The settings of one demo. `epochs` None: as many as the number of examples asks for."""

    most_examples: int = MOST_EXAMPLES
    epochs: int | None = None
    train_share: float = 0.8
    learning_rate: float = 1e-3
    batch_size: int = 4
    # Questions put to both models: from the training set, and held out.
    questions_seen: int = 4
    questions_held_out: int = 4
    answer_tokens: int = 64
    extra_hyperparams: dict[str, Any] = field(default_factory=dict)

    def examples_target(self, chunks: int) -> int:
        """How many examples to ask for; with fewer than there are chunks, the service spreads them evenly."""
        return max(FEWEST_EXAMPLES, min(self.most_examples, chunks * EXAMPLES_PER_CHUNK))

    def hyperparams(self, train_examples: int) -> dict[str, Any]:
        """Hyperparameters of the training. A short document needs more epochs for the same number of steps."""
        epochs = self.epochs or epochs_for(train_examples)
        return {
            "num_epochs": epochs,
            "learning_rate": self.learning_rate,
            "per_device_batch_size": self.batch_size,
            "gradient_accumulation_steps": 1,
            "max_seq_length": 256,
            "lora_r": 16,
            # The last weights rather than those with the lowest held-out loss: these come before the facts stick.
            "keep": "last",
            **self.extra_hyperparams,
        }


def epochs_for(train_examples: int) -> int:
    return 6 if train_examples >= 40 else 8
