"""Rollouts sampled by vLLM: in the training process or on a server, and the check that both models agree."""
