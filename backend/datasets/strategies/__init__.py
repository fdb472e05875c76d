"""Strategies that turn a chunk of a document into training examples: pure, no database, no HTTP."""
