"""Web pages of strangers: fetched by a guard that reaches public addresses only, and read in a confined child."""
