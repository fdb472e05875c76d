"""What can go wrong with projects."""

from backend.kit.errors import NotFound


class ProjectNotFound(NotFound):
    code = "PROJECT_NOT_FOUND"
    template = "There is no such project."
