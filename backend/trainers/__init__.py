"""Training, evaluation and export of adapters, each run as a child process: the only code that imports torch."""
