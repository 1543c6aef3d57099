"""MME-Emotion (arXiv 2508.09210): eight tasks whose answers are cut into steps and rated by a judge model.

A model watches a clip and answers a question. A second model cuts the answer into steps, a third one rates each step
against what can be seen and heard, and the last step, the prediction, against the gold label. Recognition is the last
rating, reasoning the mean of those before it, and CoT lies between the two.

`tasks` holds the differences between the tasks and `judged` reads judged files. `judging` extracts steps and rates them
(prompts, frames, audio clues). `scores` is the official arithmetic, an audit of what it leaves out, slow against fast,
agreement of judges, and recognition without a judge. `run` is the whole evaluation, `terminal` its tables.
"""
