"""The voice: speech synthesis, acoustics and lip movement."""
