"""What launches work with, in the API's process and in a worker's."""

from dataclasses import dataclass

from backend.jobs.events import EventLog
from backend.kit.broker import Broker
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.providers.base_models import ModelLibrary
from backend.users.recovery import Post


@dataclass(frozen=True, slots=True)
class Tools:
    """Settings and connections of the process."""

    db: Database
    settings: Settings
    broker: Broker
    events: EventLog
    library: ModelLibrary
    post: Post
