"""One interface for every engine that answers about clips: a checkpoint, an endpoint, vLLM."""
