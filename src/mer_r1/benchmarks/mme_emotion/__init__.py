"""MME-Emotion (arXiv 2508.09210): eight tasks whose answers are cut into steps and rated by a judge model.

A model watches a clip and answers a question. A second model cuts the answer into steps, a third one rates each step
against what can be seen and heard, and the last step, the prediction, against the gold label. Recognition is the last
rating, reasoning the mean of those before it, and CoT lies between the two.

`tasks` says what differs between the tasks, `judged` reads judged files, `scores` is the official arithmetic, `audit`
says what that arithmetic leaves out, `labels` recognises without a judge, `prompts` holds our wording, `pictures` and
`clues` are what a judge sees and hears, `ledger` keeps what was paid for, `stages` extracts and judges, `run` does it
all, `tables` shows it.
"""
