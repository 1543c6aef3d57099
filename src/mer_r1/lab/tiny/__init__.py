"""The tiny policy: towers and language model, pretrained from generated data."""
