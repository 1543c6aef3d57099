"""The paper's study in miniature: named variants, seeds, paired intervals, on generated scenes and two cores.

`variants` says what is compared, `jobs` which runs that takes, `schedule` runs them (side by side, resumable),
`collect` reads what they left behind, `claims` says what holds, and `report` writes tables, figures and the page
``docs/study.md``.

How seeds are used: scenes and base are made once and shared; a seed decides the cold start (SFT) and everything in RL
(order of the clips, rollouts). All variants of one seed start from the same cold start and see the same clips in the
same order, so differences between variants are paired by seed. Intervals therefore tell how much training varies, not
how much another base or another world would.
"""
