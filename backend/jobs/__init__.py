"""Long work: the jobs table is the truth, and messages are hints."""
