"""What can go wrong with projects."""

from backend.kit.errors import DomainError, NotFound


class ProjectNotFound(NotFound):
    code = "PROJECT_NOT_FOUND"
    template = "There is no such project."


class ConfigTooLarge(DomainError):
    code = "CONFIG_TOO_LARGE"
    template = "The project's config would be larger than {limit_kb} KB. Keep only settings in it."
