"""Can a calibration act on a policy? Rollouts show how much the reasoning matters and what the terms follow."""
