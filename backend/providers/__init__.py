"""Clients of outside services, each behind a Protocol."""
