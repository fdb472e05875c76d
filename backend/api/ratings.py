"""The wire shape of a rating, which both faces take: a question, and two answers of which one is better."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from backend.datasets.preferences import Rating

_Text = Annotated[str, StringConstraints(max_length=100_000)]


class MessageIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100_000)]


class RatingIn(BaseModel):
    """`prompt`, or `messages` that end with the user's; answers without a letter or digit are refused."""

    model_config = ConfigDict(extra="forbid")

    prompt: _Text | None = None
    messages: Annotated[list[MessageIn], Field(min_length=1, max_length=200)] | None = None
    preferred: _Text
    rejected: _Text

    @model_validator(mode="after")
    def _one_question(self) -> "RatingIn":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        turns = [message.role for message in self.messages or () if message.role != "system"]
        ordered = all(role == ("user", "assistant")[place % 2] for place, role in enumerate(turns))
        late = any(message.role == "system" for message in (self.messages or ())[1:])
        if self.messages is not None and (not turns or turns[-1] != "user" or not ordered or late):
            raise ValueError(
                "after one system message at most, user and assistant take turns, and the last message is the user's"
            )
        return self

    def as_rating(self) -> Rating:
        if self.messages is None:
            return Rating(self.prompt or "", self.preferred, self.rejected)
        *history, last = [message.model_dump() for message in self.messages]
        return Rating(last["content"], self.preferred, self.rejected, history)
