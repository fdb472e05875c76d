"""Celery tasks, three to ten lines each: they name a job kind and the service that does it."""
