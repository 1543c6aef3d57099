"""Free-form answers to label sets and sentiments: by rule, else by a language model."""
