"""Rollouts sampled by vLLM, in the training process or on a server, and a check that vLLM and the policy agree."""
