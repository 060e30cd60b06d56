"""Models of other programs come in, ours go out."""
