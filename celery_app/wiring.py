"""Makes what a job needs from the settings: the writing model, the tokenizer that counts, the base models, speech."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from backend.contents.token_counting import ApproximateTokenCounter, HuggingFaceTokenCounter, TokenCounter
from backend.contents.transcription.jobs import Needs, VideoNeeds
from backend.contents.transcription.recognition import Recognition
from backend.datasets.asking import Writer
from backend.datasets.errors import NoModelForGeneration
from backend.datasets.strategies.choice import strategy_for
from backend.datasets.strategies.judge import DEFAULT_THRESHOLD
from backend.jobs.running import JobRun
from backend.kit.crypto import Sealer
from backend.projects import queries as project_queries
from backend.providers.base_models import ModelLibrary
from backend.providers.huggingface import HubClient
from backend.providers.llm.asking import RetryingModel
from backend.providers.llm.base import ChatModel
from backend.providers.llm.choice import ModelChoice, choose, choose_judge, open_model
from backend.providers.speech.models import ENGINES
from backend.training.errors import NoJudge
from backend.training.local import Bench
from backend.users import provider_keys
from celery_app.runtime import Runtime


def library(current: Runtime) -> ModelLibrary:
    settings = current.settings
    hub = HubClient(
        settings.hf_endpoint, settings.hf_token.get_secret_value(), timeout_seconds=settings.hf_timeout_seconds
    )
    return ModelLibrary(settings.models_path, hub, threads=settings.training_threads)


def bench(current: Runtime) -> Bench:
    return Bench(settings=current.settings, storage=current.storage, library=library(current))


def transcription(current: Runtime) -> Needs:
    """What brings recordings and videos to text."""
    settings = current.settings
    recognition = Recognition(
        engine=ENGINES[settings.transcription_engine],
        model=settings.whisper_model,
        models_dir=settings.models_path,
        library=library(current),
        device=settings.transcription_device,
        threads=settings.transcription_threads,
    )
    videos = VideoNeeds(
        settings.youtube_languages, settings.youtube_max_minutes, settings.youtube_proxy_url.get_secret_value()
    )
    return Needs(
        recognition=recognition,
        videos=videos,
        folder=settings.data_dir / "transcription",
        max_minutes=settings.transcription_max_minutes,
        max_project_mb=settings.upload_max_project_mb,
    )


async def token_counter(run: JobRun, current: Runtime) -> TokenCounter:
    """The tokenizer of the project's base model, or an estimate while none is chosen or it cannot be had."""
    async with run.reading() as session:
        base_model = (await project_queries.get_by_id(session, run.project_id)).base_model_id
    path = await library(current).tokenizer_file(base_model) if base_model else None
    return ApproximateTokenCounter() if path is None else HuggingFaceTokenCounter(path)


@asynccontextmanager
async def writer(run: JobRun, current: Runtime) -> AsyncIterator[Writer]:
    """The language model of the job with the strategy that fits its strength, and its judge when it wants one.

    The job names both, or none for those of the settings. What is asked with the user's own key gets the key as it is
    now. Raises NoModelForGeneration, NoProviderKey.
    """
    settings = current.settings
    choice = choose(settings, run.params.get("model"))
    if choice is None:
        raise NoModelForGeneration()
    async with AsyncExitStack() as models:
        model = await models.enter_async_context(await _language_model(run, current, choice))
        judge = None
        if run.params.get("judge"):
            judging = choose_judge(settings, choice, run.params.get("judge_model"))
            if judging is None:
                raise NoModelForGeneration()
            judge = model
            if judging != choice:
                judge = await models.enter_async_context(await _language_model(run, current, judging))
        yield Writer(
            model=model,
            strategy=strategy_for(choice.model, settings.llm_strategy),
            counter=await token_counter(run, current),
            max_concurrency=settings.llm_max_concurrency,
            judge=judge,
            judge_threshold=float(run.params.get("judge_threshold") or DEFAULT_THRESHOLD),
        )


@asynccontextmanager
async def answer_judge(run: JobRun, current: Runtime) -> AsyncIterator[ChatModel]:
    """LLM_JUDGE_MODEL, which compares answers. Raises NoJudge."""
    name = current.settings.llm_judge_model
    choice = choose(current.settings, name) if name else None
    if choice is None:
        raise NoJudge()
    async with await _language_model(run, current, choice) as model:
        yield model


async def _language_model(run: JobRun, current: Runtime, choice: ModelChoice) -> RetryingModel:
    settings = current.settings
    if not choice.own_key:
        return open_model(settings, choice)
    sealer = Sealer(settings.sealing_keys)
    async with run.reading() as session:
        return open_model(
            settings, choice, await provider_keys.reveal(session, sealer, run.claim.user_id, choice.provider)
        )
