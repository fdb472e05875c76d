"""The demonstration: a document becomes a fine-tuned model through the service's own HTTP API, with the proof."""
