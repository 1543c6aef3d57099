"""MER-UniBench: nine data sets, their official scores to the last digit, and what these scores hide."""
