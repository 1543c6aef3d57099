"""What happens in a scene, what is said and written about it, and the best possible answer."""
