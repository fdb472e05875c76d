"""Speech to text: the engines, and the models that they need."""
