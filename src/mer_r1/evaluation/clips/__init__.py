"""A user's own clips and recordings: asked with resume, shown to people, as tables and as timelines."""
