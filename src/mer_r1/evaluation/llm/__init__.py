"""Client for language models that read and judge: requests, retries, cache, costs."""
