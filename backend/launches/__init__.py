"""Launches: an order's way from its price to a trained model, step by step, each exactly once."""
