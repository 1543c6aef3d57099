"""Commands of MER-UniBench and MME-Emotion, and their views on a terminal."""
