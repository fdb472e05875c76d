"""Speech to text: recordings and videos become documents with times."""
