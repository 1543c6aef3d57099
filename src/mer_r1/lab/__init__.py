"""The method in miniature: generated scenes, a tiny policy, the study and the end-to-end demo."""
