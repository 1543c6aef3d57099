"""The web page for a user's own clips: `mer-r1 app`."""
