"""Clips and manifests, media files and JSON lines; nothing here knows about emotions."""
