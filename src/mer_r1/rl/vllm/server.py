"""Sampling from a vLLM server, with requests that make it read exactly our frames and our waveform.

A server decodes the media that it receives. So a clip is sent as the frames of training, each a PNG (vLLM reads a
series of images as a video, without loss), with their true rate, and as the waveform in 32-bit floats. The prompt is
the server's chat template with our question; the server returns its tokens, which `vllm.rollouts` compares with ours.
TRL sends the weights; the confidences are the policy's, because a server cannot score text that continues the sampled
tokens unchanged.

Start it on a whole checkpoint of the same model, with the options that TRL needs:
`VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/Qwen2.5-Omni-7B --weight-transfer-config '{"backend": "nccl"}'
--logprobs-mode processed_logprobs --limit-mm-per-prompt '{"audio": 1, "video": 1}'`.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mer_r1.data.media.encode import as_base64, float_wav, png
from mer_r1.errors import UserError
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni
from mer_r1.model.prompts import plain_text
from mer_r1.rl.vllm.colocated import BANNED, Asked, Completion, Sampled
from mer_r1.rl.vllm.engine import bad_words

AT_ONCE = 16
"""Concurrent requests per process."""


class Served:
    """A vLLM server.

    Args:
        base_url: address of the server, without a path.
        timeout: limit of one request, in seconds.

    Raises:
        UserError: no server answers at the address.
    """

    def __init__(self, base_url: str, timeout: float = 600.0) -> None:
        self.base_url, self.timeout = base_url.rstrip("/"), timeout
        if not self.base_url.startswith(("http://", "https://")):
            raise UserError("vllm_server_base_url: expected http://HOST:PORT")
        self.model = self._send("/v1/models")["data"][0]["id"]

    def sample(self, asked: Sequence[Asked], num_generations: int, sampling: Sampling, omni: Omni) -> Sampled:
        """See `Engine.sample`.

        Raises:
            UserError: the server refuses a request.
        """
        common = {
            "model": self.model,
            "n": num_generations,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,  # what is not named here, a server takes from the model's generation_config.json
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,
            "max_tokens": sampling.max_new_tokens,
            "seed": sampling.seed,
            "logprobs": True,
            "top_logprobs": 0,
            "stop_token_ids": omni.eos_ids,
            "logit_bias": {str(token): BANNED for token in omni.forbidden_ids},
            "bad_words": bad_words(omni.settings) or [],
            "skip_special_tokens": False,
            "return_token_ids": True,
        }
        bodies = [common | body_of(one, omni) for one in asked]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            replies = list(pool.map(lambda body: self._send("/v1/chat/completions", body), bodies))
        return [_sampled(reply) for reply in replies]

    def _send(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        # http or https, checked above
        request = urllib.request.Request(self.base_url + path, content, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                return dict(json.load(reply))
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode("utf-8", "replace").split())[:300]
            raise UserError(f"the vLLM server at {self.base_url} refuses {path}: {error.code}, {said}") from error
        except (OSError, ValueError) as error:
            raise UserError(f"the vLLM server at {self.base_url} does not answer {path}: {error}") from error


def body_of(asked: Asked, omni: Omni) -> dict[str, Any]:
    """The part of a request about its clip: `messages`, and `mm_processor_kwargs` if there is a video.

    Prefilled text is an unfinished turn of the assistant, which the server continues.
    """
    data = asked.request.get("multi_modal_data", {})
    parts: list[dict[str, Any]] = []
    if "video" in data:
        frames = ",".join(as_base64(png(frame)) for frame in data["video"])
        parts.append({"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}})
    if "audio" in data:
        sound = as_base64(float_wav(*data["audio"]))
        parts.append({"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}})
    text = plain_text(omni, omni.settings.asked(asked.clip.subtitle))
    body: dict[str, Any] = {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]}
    if asked.prefilled:
        body["messages"].append({"role": "assistant", "content": asked.prefilled})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    how = asked.request.get("mm_processor_kwargs")
    return body | ({"mm_processor_kwargs": how} if how else {})


def _sampled(reply: dict[str, Any]) -> tuple[list[int], list[Completion]]:
    completions = [
        Completion(list(choice["token_ids"]), [step["logprob"] for step in choice["logprobs"]["content"]])
        for choice in sorted(reply["choices"], key=lambda choice: choice["index"])
    ]
    for completion in completions:
        if len(completion.ids) != len(completion.logps):
            raise UserError(
                f"the vLLM server returned {len(completion.logps)} log-probabilities for {len(completion.ids)} tokens"
            )
    return list(reply["prompt_token_ids"]), completions
