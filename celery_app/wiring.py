"""Makes what a job needs from the settings: the writing model, the tokenizer that counts, the base models."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from backend.contents.token_counting import ApproximateTokenCounter, HuggingFaceTokenCounter, TokenCounter
from backend.datasets.asking import Writer
from backend.datasets.errors import NoModelForGeneration
from backend.datasets.strategies.choice import strategy_for
from backend.datasets.strategies.judge import DEFAULT_THRESHOLD
from backend.jobs.running import JobRun
from backend.projects import queries as project_queries
from backend.providers.base_models import ModelLibrary
from backend.providers.huggingface import HubClient
from backend.providers.llm.openai_compatible import OpenAICompatibleModel
from backend.training.local import Bench
from celery_app.runtime import Runtime


def library(current: Runtime) -> ModelLibrary:
    settings = current.settings
    hub = HubClient(
        settings.hf_endpoint, settings.hf_token.get_secret_value(), timeout_seconds=settings.hf_timeout_seconds
    )
    return ModelLibrary(settings.models_path, hub, threads=settings.training_threads)


def bench(current: Runtime) -> Bench:
    return Bench(settings=current.settings, storage=current.storage, library=library(current))


async def token_counter(run: JobRun, current: Runtime) -> TokenCounter:
    """The tokenizer of the project's base model, or an estimate while none is chosen or it cannot be had."""
    async with run.reading() as session:
        base_model = (await project_queries.get_by_id(session, run.project_id)).base_model_id
    path = await library(current).tokenizer_file(base_model) if base_model else None
    return ApproximateTokenCounter() if path is None else HuggingFaceTokenCounter(path)


@asynccontextmanager
async def writer(run: JobRun, current: Runtime) -> AsyncIterator[Writer]:
    """The configured language model with the strategy that fits its strength; `model` of the job overrides its name.

    A job that wants a judge gets LLM_JUDGE_MODEL of the same server, or the writing model itself.
    """
    settings = current.settings
    name = run.params.get("model") or settings.llm_model
    if not settings.llm_base_url or not name:
        raise NoModelForGeneration()
    async with AsyncExitStack() as models:
        model = await models.enter_async_context(_language_model(current, name))
        judge = None
        if run.params.get("judge"):
            judge_name = settings.llm_judge_model or name
            judge = model if judge_name == name else _language_model(current, judge_name)
            if judge is not model:
                await models.enter_async_context(judge)
        yield Writer(
            model=model,
            strategy=strategy_for(name, settings.llm_strategy),
            counter=await token_counter(run, current),
            max_concurrency=settings.llm_max_concurrency,
            judge=judge,
            judge_threshold=float(run.params.get("judge_threshold") or DEFAULT_THRESHOLD),
        )


def _language_model(current: Runtime, name: str) -> OpenAICompatibleModel:
    settings = current.settings
    return OpenAICompatibleModel(
        base_url=settings.llm_base_url,
        model=name,
        api_key=settings.llm_api_key.get_secret_value() or None,
        timeout_seconds=settings.llm_timeout_seconds,
        max_concurrency=settings.llm_max_concurrency,
        max_attempts=settings.llm_max_attempts,
    )
