"""The Qwen-Omni thinker: loading, prompts, tower features, shared prefixes and generation."""
