"""Extract steps and rate them with a judge model: prompts, frames, audio clues."""
