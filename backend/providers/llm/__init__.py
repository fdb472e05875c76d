"""Language models behind one Protocol: chat completions whose JSON answers are always validated."""
