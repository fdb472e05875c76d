"""Characters: what was processed, for whom, written once."""
