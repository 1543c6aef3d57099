"""The mechanism in miniature: a reason-then-answer policy so small that all seeds train as one batch.

`policy` is the world and the policy, `formulas` the advantages that are compared, `train` the cold start and RL,
`report` the table and the picture. One dial, `sight`, is how much of the clip the answer sees past its reasoning. The
study shows when slow-fast calibration can act and when not (docs/mechanism.md); it does not predict any score on real
clips.
"""
