"""The nine sets of MER-UniBench and the eight tasks of MME-Emotion inside lmms-eval, scored by our own functions.

lmms-eval (0.7.3) finds tasks in folders of YAML files:

    lmms-eval --include_path "$(python -m mer_r1.integrations.lmms_eval tasks)" ...

It brings the models and runs them; questions, media and scores come from here, so that both tools agree. `documents`
makes its documents and messages from the manifests of `mer-r1 prepare`, and `scores` reads and scores the answers.
`python -m mer_r1.integrations.lmms_eval answers` (`answers`) converts saved answers to the prediction files of
`mer-r1 extract`, `score` and `eval`, where a language model reads what no rule can.

Nothing here imports lmms-eval: it calls the functions that `tasks/*/*.yaml` name.
"""

from pathlib import Path

TASKS_FOLDER = Path(__file__).parent / "tasks"
"""Value of lmms-eval's option `--include_path`."""
