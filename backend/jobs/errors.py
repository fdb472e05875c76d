"""What can go wrong with jobs."""

from backend.kit.errors import Conflict, NotFound


class JobNotFound(NotFound):
    code = "JOB_NOT_FOUND"
    template = "There is no such job."


class JobAlreadyRunning(Conflict):
    code = "JOB_ALREADY_RUNNING"
    template = "A {kind} job is already running for this project. Wait for it to end, or cancel it."


class JobAlreadyEnded(Conflict):
    code = "JOB_ALREADY_ENDED"
    template = "The job has already ended ({state}); there is nothing to cancel."


class LeaseLost(Exception):
    """Another worker holds the job now, or it has ended: whoever sees this must stop and write nothing."""
