"""What a project keeps and shows of its base model."""

from typing import Any

from backend.providers.model_facts import ModelFacts
from backend.training import sizing


def describe(facts: ModelFacts) -> dict[str, Any]:
    """The contract's fields, with the pinned revision and the full training estimate beside them."""
    return {
        "model_id": facts.model_id,
        "model_type": facts.model_type,
        "architecture": facts.architecture,
        "vocab_size": facts.vocab_size,
        "max_position_embeddings": facts.max_position_embeddings,
        "license": facts.license,
        "valid": facts.trainable,
        "warnings": list(facts.warnings),
        "source": facts.source,
        "revision": facts.revision,
        **sizing.public_numbers(facts),
    }
