"""The HTTP faces: they translate, and own no rule and no query."""
