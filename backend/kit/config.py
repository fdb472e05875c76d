"""All settings of the service, read once from the environment (and from a .env file when there is one)."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

AuthMode = Literal["local", "token"]


class Settings(BaseSettings):
    """One field per environment variable of the same name in upper case."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore")

    # Where things are
    data_dir: Path = Path(".finetuneflow")
    database_url: str = "postgresql+asyncpg://finetuneflow:finetuneflow@127.0.0.1:5432/finetuneflow"
    redis_url: str = "redis://127.0.0.1:6379/0"
    storage_url: str = ""
    # Connections beyond the pool are opened and closed again for each request, which costs more than most requests.
    database_pool_size: int = Field(default=20, ge=1)
    database_max_overflow: int = Field(default=10, ge=0)

    # Who may call
    auth_mode: AuthMode = "token"
    secret_key: SecretStr = SecretStr("")
    access_token_minutes: int = Field(default=30, ge=1)
    refresh_token_days: int = Field(default=30, ge=1)
    allowed_hosts: list[str] = []
    cors_origins: list[str] = []

    # Logs
    log_level: str = "INFO"
    log_json: bool = False

    # Uploads and documents
    upload_max_file_mb: int = Field(default=50, ge=1)
    upload_max_project_mb: int = Field(default=500, ge=1)
    upload_max_files: int = Field(default=100, ge=1)
    extraction_timeout_seconds: float = Field(default=60.0, gt=0)
    extraction_memory_mb: int = Field(default=512, ge=256)

    # The language model that writes datasets: any OpenAI-compatible endpoint
    llm_base_url: str = ""
    llm_api_key: SecretStr = SecretStr("")
    llm_model: str = ""
    llm_strategy: Literal["auto", "grounded", "free"] = "auto"
    llm_max_concurrency: int = Field(default=4, ge=1)
    llm_timeout_seconds: float = Field(default=120.0, gt=0)
    llm_max_attempts: int = Field(default=5, ge=1)

    # Base models
    models_dir: Path | None = None
    hf_endpoint: str = ""
    hf_token: SecretStr = SecretStr("")
    hf_timeout_seconds: float = Field(default=10.0, gt=0)

    # Training
    training_device: Literal["auto", "cpu", "cuda"] = "auto"
    training_threads: int = Field(default=0, ge=0)
    training_cancel_grace_seconds: float = Field(default=10.0, gt=0)

    # Jobs (seconds)
    job_lease_seconds: float = Field(default=15.0, gt=0)
    job_heartbeat_seconds: float = Field(default=1.0, gt=0)
    job_sweep_seconds: float = Field(default=5.0, gt=0)
    job_resend_seconds: float = Field(default=10.0, gt=0)

    # Billing
    free_characters: int = Field(default=10_000, ge=0)

    @model_validator(mode="after")
    def _fill_in(self) -> "Settings":
        self.data_dir = self.data_dir.expanduser().absolute()
        if not self.storage_url:
            self.storage_url = (self.data_dir / "storage").as_uri()
        if self.models_dir is None:
            self.models_dir = self.data_dir / "models"
        return self

    @property
    def models_path(self) -> Path:
        assert self.models_dir is not None
        return self.models_dir

    @property
    def upload_max_file_bytes(self) -> int:
        return self.upload_max_file_mb * 1024 * 1024

    @property
    def upload_max_project_bytes(self) -> int:
        return self.upload_max_project_mb * 1024 * 1024


@lru_cache
def get_settings() -> Settings:
    return Settings()
