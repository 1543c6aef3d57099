"""Media files: opened safely, decoded in one pass to frames and waveform, encoded for requests and pages."""
