"""Which strategy fits a model: grounded for the very small ones, free for all others; and whether it can do a task."""

import re
from collections.abc import Sequence

from backend.datasets.strategies.base import ChunkText, GenerationStrategy, TaskType
from backend.datasets.strategies.free import FreeStrategy
from backend.datasets.strategies.grounded import GroundedStrategy

# Below this size, free answers were mostly wrong when they were tried.
SMALLEST_FREE_MODEL_BILLIONS = 1.0
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:[.,]\d+)?)([mb])(?![a-z0-9])")


def strategy_for(model_name: str, configured: str = "auto") -> GenerationStrategy:
    """The strategy that LLM_STRATEGY names; for 'auto', by the size in the model's name. Raises ValueError otherwise.

    Names without a size, such as 'gpt-4.1-mini', count as strong, apart from the bare names of tiny families.
    """
    if configured == "grounded":
        return GroundedStrategy()
    if configured == "free":
        return FreeStrategy()
    if configured != "auto":
        raise ValueError(f"LLM_STRATEGY is '{configured}': set it to auto, grounded or free")
    return GroundedStrategy() if is_tiny(model_name) else FreeStrategy()


def is_tiny(model_name: str) -> bool:
    """Whether the name says that the model has fewer than SMALLEST_FREE_MODEL_BILLIONS parameters."""
    name = model_name.lower()
    sizes = [float(size.replace(",", ".")) / (1000 if unit == "m" else 1) for size, unit in _SIZE.findall(name)]
    if sizes:
        return max(sizes) < SMALLEST_FREE_MODEL_BILLIONS
    return bool(re.search(r"gpt2$|distilgpt|tiny-?random|pythia-tiny|tinystories", name))


def check_task(task_type: TaskType | str, labels: Sequence[str], strategy: GenerationStrategy) -> None:
    """Raises TaskNotSupportedByModel where the strategy cannot make such examples, before any document is read."""
    strategy.plan(ChunkText(text="", task_type=TaskType(task_type), labels=tuple(labels)), 1)
