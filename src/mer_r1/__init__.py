"""MER-R1: reinforcement learning that makes reasoning help multimodal emotion recognition (arXiv 2606.27652)."""

__version__ = "0.1.0"
