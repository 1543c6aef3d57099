"""The tiny policy: its towers and language model are pretrained here, from generated data."""
