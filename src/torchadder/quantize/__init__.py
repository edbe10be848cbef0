"""Integer nets from trained ones."""
