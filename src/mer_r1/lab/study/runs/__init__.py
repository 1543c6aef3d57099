"""Which runs a study takes, and how they are scheduled, side by side and resumable."""
