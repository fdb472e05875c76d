"""One chunk to the model, and its examples to the judge when one is wanted: nothing here touches the database."""

from dataclasses import dataclass

from backend.contents.token_counting import TokenCounter
from backend.datasets.sources import Source
from backend.datasets.strategies.base import ChunkText, GenerationStrategy, TaskType
from backend.datasets.strategies.judge import DEFAULT_THRESHOLD, Judgement, judge
from backend.datasets.strategies.run import ChunkOutcome, generate_for_chunk
from backend.projects.models import Project
from backend.providers.llm.base import ChatModel


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes the examples, who counts their tokens, and who judges them (nobody, unless it was asked for)."""

    model: ChatModel
    strategy: GenerationStrategy
    counter: TokenCounter
    max_concurrency: int
    judge: ChatModel | None = None
    judge_threshold: float = DEFAULT_THRESHOLD


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one chunk. The judgement has a score for each valid draft, in their order."""

    source: Source
    asked: int
    outcome: ChunkOutcome
    judgement: Judgement | None

    @property
    def prompt_tokens(self) -> int:
        return self.outcome.prompt_tokens + (self.judgement.prompt_tokens if self.judgement else 0)

    @property
    def completion_tokens(self) -> int:
        return self.outcome.completion_tokens + (self.judgement.completion_tokens if self.judgement else 0)


async def ask(writer: Writer, project: Project, source: Source, wanted: int, *, times: int = 1) -> Answer:
    """Asks one chunk for `wanted` examples; `times` is how often it has been asked, this time included."""
    text = text_of(project, source, times)
    outcome = await generate_for_chunk(writer.model, writer.strategy, text, wanted)
    fit = [draft for draft in outcome.drafts if draft.is_valid]
    judgement = await judge(writer.judge, text, fit) if writer.judge is not None and fit else None
    return Answer(source, wanted, outcome, judgement)


def text_of(project: Project, source: Source, times: int = 1) -> ChunkText:
    """The chunk as the strategies take it, with what the project says about the task."""
    return ChunkText(
        text=source.text,
        position=source.chunk_index,
        page_start=source.meta.get("page_start"),
        page_end=source.meta.get("page_end"),
        page_starts=tuple((int(offset), int(page)) for offset, page in source.meta.get("page_starts") or ()),
        headings=tuple(source.meta.get("headings") or ()),
        task_type=TaskType(project.task_type),
        labels=tuple(project.config.get("labels") or ()),
        language=source.language,
        avoid=source.avoid,
        round=times,
    )
