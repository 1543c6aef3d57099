"""A model for lmms-eval that answers by rote: what its command line passes on, and how our tasks score it.

`check_lmms.py` registers it as "rote" through lmms-eval's entry points, with both of its interfaces.
"""

from pathlib import Path

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages

ANSWERS = (
    "<think> Her eyes shine. </think><answer> happy, calm </answer>",
    "<think> A low voice. </think><answer> sad </answer>",
    "<think></think><answer> angry, hurt </answer>",
)


class Rote(lmms):
    """Answers by the document's number."""

    is_simple = True

    def __init__(self, **_) -> None:
        super().__init__()

    def loglikelihood(self, requests):
        raise NotImplementedError

    def generate_until_multi_round(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        return [ANSWERS[request.args[3] % len(ANSWERS)] for request in requests]


class ChatRote(Rote):
    """The same through the chat interface, whose messages it opens."""

    is_simple = False

    def generate_until(self, requests):
        for _, doc_to_messages, _, doc_id, task, split in (request.args for request in requests):
            messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
            _, videos, audios = messages.extract_media()
            assert all(Path(file).is_file() for file in (*videos, *audios))
            assert videos or audios
        return super().generate_until(requests)


MANIFEST = ModelManifest("rote", simple_class_path="lmms_model.Rote", chat_class_path="lmms_model.ChatRote")
