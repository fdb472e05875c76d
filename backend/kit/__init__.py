"""What every domain stands on: settings, database, errors, pagination, broker, Redis, logs."""
