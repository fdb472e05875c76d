"""Datasets: examples made from chunks, checked, split and counted."""
