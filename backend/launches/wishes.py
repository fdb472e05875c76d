"""What somebody wants launched, and whether it can be: everything that is refused before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents import queries as content_queries
from backend.contents.models import Content
from backend.datasets import service as datasets
from backend.kit.config import Settings
from backend.projects.models import Project
from backend.providers.base_models import ModelLibrary
from backend.training import fine_tunings, methods
from backend.training.fine_tunings import Wanted
from backend.training.freezing import Checked
from backend.users import plans

_PENDING = ("pending", "processing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A launch without its project, as an order keeps it. `hyperparameters` have the public names."""

    content_ids: Sequence[int]
    dataset_name: str
    job_name: str
    provider: str
    model: str
    method: str = "qlora"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> "Wish":
        return cls(**params["wish"])

    def as_params(self) -> dict[str, Any]:
        return {"wish": {**asdict(self), "content_ids": list(self.content_ids)}}

    @property
    def wanted(self) -> Wanted:
        return Wanted(
            name=self.job_name,
            description=None,
            provider=self.provider,
            model=self.model,
            hyperparameters=dict(self.hyperparameters),
            method=self.method,
        )


@dataclass(frozen=True, slots=True)
class Granted:
    """A wish that can be carried out. `unknown` are the contents that have no text yet; they count 0 characters."""

    wish: Wish
    project: Project
    contents: Sequence[Content]
    run: Checked

    @property
    def characters(self) -> int:
        return sum(content.character_count for content in self.contents)

    @property
    def unknown(self) -> list[int]:
        return unknown_of(self.contents)


async def check(
    session: AsyncSession, settings: Settings, library: ModelLibrary, project: Project, wish: Wish
) -> Granted:
    """Holds the user's row until the transaction ends, so that of two launches one sees the other's fine-tuning.

    Raises, in this order, UnknownContent, PlanLimitReached, UnknownProvider, ProviderHasNoFineTuning,
    ModelNotTrainable, BadHyperparameter, ModelTooLarge, DoesNotFit, NoProviderKey, NothingRatedYet,
    ContentNotADocument, ContentNotReady, NoModelForGeneration.
    """
    contents = await content_queries.list_by_number(session, project.id, wish.content_ids)
    await plans.require_room_for_fine_tuning(session, project.user_id)
    run = await fine_tunings.check(session, library, project, wish.wanted)
    if wish.provider == fine_tunings.LOCAL:
        methods.require_rateable(wish.method)
    datasets.require_documents(contents)
    await datasets.require_model(session, settings, project, None)
    return Granted(wish, project, contents, run)


def unknown_of(contents: Sequence[Content]) -> list[int]:
    """The numbers of those that have no text yet."""
    return [content.id for content in contents if content.status in _PENDING]
