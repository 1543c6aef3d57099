"""Run by test_lmms_tasks.py in a process of its own: lmms-eval over all our tasks, with models that answer by rote.

Importing lmms-eval changes settings of torch, filelock and Pillow for the whole process. Arguments: the folder of tasks
and a folder to write to.
"""

import json
import sys
from pathlib import Path

from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.loggers.evaluation_tracker import EvaluationTracker
from lmms_eval.protocol import ChatMessages
from lmms_eval.tasks import TaskManager

ANSWERS = (
    "<think> Her eyes shine. </think><answer> happy, calm </answer>",
    "<think> A low voice.\n\nTears. </think><answer> sad </answer>",
    "<think></think><answer> angry, hurt </answer>",
)


class Rote(lmms):
    """Answers by the document's number, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, list] = {}

    def loglikelihood(self, requests):
        raise NotImplementedError

    def generate_until_multi_round(self, requests):
        raise NotImplementedError


class Chat(Rote):
    is_simple = False

    def generate_until(self, requests):
        for _, doc_to_messages, settings, doc_id, task, split in (request.args for request in requests):
            messages = doc_to_messages(self.task_dict[task][split][doc_id])
            images, videos, audios = ChatMessages(messages=messages).extract_media()
            self.asked.setdefault(task, []).append(
                {"messages": messages, "images": images, "videos": videos, "audios": audios, "settings": settings}
            )
        return [ANSWERS[request.args[3]] for request in requests]


class Simple(Rote):
    is_simple = True

    def generate_until(self, requests):
        for context, _, doc_to_visual, doc_id, task, split in (request.args for request in requests):
            visuals = doc_to_visual(self.task_dict[task][split][doc_id])
            self.asked.setdefault(task, []).append({"context": context, "visuals": visuals})
        return [ANSWERS[request.args[3]] for request in requests]


def run(tasks_folder: str, out: Path) -> None:
    manager = TaskManager(include_path=tasks_folder, include_defaults=False)
    report = {"tasks": manager.all_subtasks, "groups": manager.all_groups}
    for name, model, chosen in (
        ("chat", Chat(), ["mer_unibench", "mme_emotion", "mer_unibench_ovmerd"]),
        ("simple", Simple(), ["mer_unibench_meld"]),
    ):
        found = simple_evaluate(model, tasks=chosen, task_manager=manager)
        report[name] = {"results": found["results"], "asked": model.asked, "groups": found.get("groups")}
        if name == "chat":
            tracker = EvaluationTracker(output_path=str(out / "samples"))
            tracker.general_config_tracker.model_name_sanitized, tracker.date_id = "rote", "today"
            for task, samples in found["samples"].items():
                tracker.save_results_samples(task, samples)
    (out / "report.json").write_text(json.dumps(report, default=str), encoding="utf-8")


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
