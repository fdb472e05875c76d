"""A run's losses by step, the same on both faces."""

from pydantic import BaseModel


class PointOut(BaseModel):
    """What is known of one optimizer step; step 0 is the base model."""

    step: int
    train_loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None


class LossCurveOut(BaseModel):
    points: list[PointOut]
