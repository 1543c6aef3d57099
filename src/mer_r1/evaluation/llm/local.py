"""A local checkpoint instead of a server: any causal language model that transformers can load.

It answers the same prompts through the same cache as the client for servers (`llm.client.Client`), so either can
extract labels. Text only: images and audio need a server.
"""

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from mer_r1.data.claim import weights_digest
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.cache import Replies, ReplyCache
from mer_r1.evaluation.llm.chat import ChatPrompt, Decoding, OnReply, Reply


class LocalModel:
    """A causal language model in a folder or on the hub."""

    def __init__(
        self,
        folder: str | Path,
        decoding: Decoding | None = None,
        cache: ReplyCache | None = None,
        batch_size: int = 8,
        device: str | None = None,
    ) -> None:
        """Load the model and its tokenizer.

        Args:
            folder: checkpoint folder or hub name.
            decoding: how replies are decoded; greedy by default. Sampled replies depend on the batch size too.
            cache: keeps the replies; None keeps them for this object's lifetime only.
            batch_size: prompts decoded together; the reference takes 8.
            device: torch device; None takes a GPU if there is one.

        Raises:
            UserError: it cannot be loaded.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from mer_r1.model.omni import loading

        self.decoding = decoding or Decoding()
        self.cache = ReplyCache(":memory:") if cache is None else cache
        self.batch_size = batch_size
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with loading(folder, "a causal language model"):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)
            self.model: Any = loaded.to(device).eval()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.name = f"{Path(folder).name}@{str(weights_digest(folder))[:12]}"

    def complete(self, prompts: Sequence[ChatPrompt], version: str, on_reply: OnReply | None = None) -> list[Reply]:
        """One reply per prompt, in order; see `chat.TextModel`.

        Raises:
            UserError: a prompt holds more than text.
        """
        replies = Replies(prompts, self.cache, self.name, self.decoding, version, on_reply)
        texts = {key: self._text(replies.prompt(key)) for key in replies.missing}
        keys = sorted(texts, key=lambda key: len(texts[key]))  # texts of similar length need the least padding
        for start in range(0, len(keys), self.batch_size):
            batch = keys[start : start + self.batch_size]
            for key, reply in zip(batch, self._generate([texts[key] for key in batch]), strict=True):
                replies.arrived(key, reply)
        return replies.in_order()

    def _text(self, prompt: ChatPrompt) -> str:
        if not all(isinstance(message["content"], str) for message in prompt.messages):
            raise UserError(f"language model {self.name}: reads text only; frames and sounds need a server")
        from mer_r1.model.prompts import chat_text

        messages = [dict(message) for message in prompt.messages]
        if self.tokenizer.chat_template is not None:
            return chat_text(self.tokenizer, messages)
        return "\n".join(str(message["content"]) for message in messages)

    def _generate(self, texts: Sequence[str]) -> list[Reply]:
        import torch

        begin = monotonic()
        bare = self.tokenizer.chat_template is None  # a template writes the special tokens itself
        inputs = self.tokenizer(list(texts), return_tensors="pt", padding=True, add_special_tokens=bare)
        inputs = {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        if self.decoding.seed is not None:
            torch.manual_seed(self.decoding.seed)
        with torch.inference_mode():
            output = self.model.generate(
                **inputs, pad_token_id=self.tokenizer.pad_token_id, **generation_settings(self.decoding)
            )
        seconds = (monotonic() - begin) / len(texts)
        written = output[:, inputs["input_ids"].shape[1] :]
        counts = inputs["attention_mask"].sum(dim=1).tolist()
        return [self._reply(row, int(count), seconds) for row, count in zip(written, counts, strict=True)]

    def _reply(self, row: Any, prompt_tokens: int, seconds: float) -> Reply:
        """The reply in one row of new token ids, padded at the end."""
        ends = self.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        ids = row.tolist()
        length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        finish_reason = "stop" if length < len(ids) else "length"
        text = self.tokenizer.decode(ids[:length], skip_special_tokens=True)
        if not text.strip():
            return Reply(None, "an empty reply", finish_reason)
        return Reply(text, None, finish_reason, False, prompt_tokens, length, seconds)


def generation_settings(decoding: Decoding) -> dict[str, Any]:
    """Arguments of transformers' `generate`; the checkpoint's own generation settings are overridden.

    >>> generation_settings(Decoding(temperature=0.7, max_tokens=9, top_p=0.8))["top_k"]
    0
    """
    settings = {"max_new_tokens": decoding.max_tokens, "repetition_penalty": decoding.repetition_penalty or 1.0}
    if decoding.temperature == 0:
        return settings | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    # top_k = 0 turns off the 50 that transformers takes by default and servers do not.
    sampled = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p or 1.0, "top_k": 0}
    return settings | sampled
