"""What the judge is shown and asked, stage by stage."""
