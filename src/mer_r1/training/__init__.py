"""Recipes, the two stages (SFT and RL), and what a run costs."""
