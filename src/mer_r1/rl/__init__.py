"""The method. Read rewards, advantages, calibration, method, rollout and trainer, in this order."""
