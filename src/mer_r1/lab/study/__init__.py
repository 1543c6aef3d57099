"""The paper's study in miniature: named variants, seeds, paired intervals, on generated scenes and two cores.

`variants` defines what is compared, `jobs` plans the runs, `schedule` runs them (in parallel, resumable), `collect`
reads their results, `claims` decides which claims hold, and `report` writes tables, figures and ``docs/study.md``.

Seeds: a seed determines the cold start (SFT) and everything in RL (order of the clips, rollouts). All variants of one
seed start from the same cold start and see the same clips, so differences between variants are paired by seed.
Intervals measure the variance of training, not of the base or of the generated world.
"""
