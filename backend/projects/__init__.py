"""Projects: what everything else hangs on."""
