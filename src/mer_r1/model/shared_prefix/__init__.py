"""A prompt is computed once for everything that continues it, in training and in sampling."""
