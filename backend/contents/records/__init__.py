"""Uploaded datasets: rows of many shapes and containers, mapped to one, each bad one with its line and reason."""
