"""The scene model: emotions and cues, sentences, written texts, and the best possible answer."""
