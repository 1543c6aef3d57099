"""The Qwen-Omni thinker: loading, prompts, tower features, shared prefixes and generation."""

from mer_r1.data.workers import uncollected

with uncollected():  # torch and transformers, which every file here needs
    from mer_r1.model import families as families
