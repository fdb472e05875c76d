"""FineTuneFlow: documents in, a fine-tuned and proven language model out."""

__version__ = "0.1.0"
