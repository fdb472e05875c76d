"""The embedded stack: PostgreSQL, Valkey, the local LLM, the API and the workers in one data folder."""
