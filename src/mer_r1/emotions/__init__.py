"""Words: emotion wheels, the two forms of a completion, and precision, recall and F1 of sets of words."""
