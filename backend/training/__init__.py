"""Fine-tuning: runs on the service's own workers, their evaluation and their artifacts."""
