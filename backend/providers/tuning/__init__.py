"""Fine-tuning at outside providers, each behind the TuningProvider Protocol."""
