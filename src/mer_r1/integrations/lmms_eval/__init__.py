"""The nine sets of MER-UniBench and the eight tasks of MME-Emotion inside lmms-eval, scored by our own functions.

lmms-eval (0.7.3) finds tasks by folders of YAML files: `lmms-eval --include_path $(mer-r1 lmms-tasks)`. It brings the
models and runs them; what is asked, shown and scored comes from here, so that both tools agree. `documents` makes its
documents and messages from the manifests of `mer-r1 prepare`, `scores` reads and scores the answers, `answers` takes
saved answers back to `mer-r1 score` and `mer-r1 eval`, where a language model reads what no rule can.

Nothing here imports lmms-eval: it calls us by the names in `tasks/*/*.yaml`.
"""

from pathlib import Path

TASKS_FOLDER = Path(__file__).parent / "tasks"
"""What `--include_path` wants."""
