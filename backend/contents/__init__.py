"""Documents: what was uploaded, the text inside it, and the chunks that training examples are written from."""
