"""Options of the engine that answers: PyTorch or vLLM in this process or in several, or a model behind a server."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mer_r1.cli.options import Requests, parse_fields
from mer_r1.data.clip import Clip
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.cache import ReplyCache
from mer_r1.evaluation.llm.chat import Decoding

if TYPE_CHECKING:
    from mer_r1.evaluation.answerers.base import ClipModel


@dataclass(frozen=True)
class Patient(Requests):
    """Options of requests that carry a clip."""

    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a reply counts as lost.")] = 300.0


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Options of the engine."""

    model_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server of the model (.../v1).")] = None
    model_extra_body: Annotated[
        str | None, typer.Option(help="Further fields of each request to --model-url, as JSON.")
    ] = None
    send_video: Annotated[
        Literal["video_url", "frames", "none"], typer.Option(help="Form of the video for --model-url.")
    ] = "video_url"
    send_audio: Annotated[
        Literal["audio_url", "input_audio", "none"], typer.Option(help="Form of the audio for --model-url.")
    ] = "audio_url"
    engine: Annotated[Literal["torch", "vllm"], typer.Option(help="Engine that runs a checkpoint.")] = "torch"
    gpu_memory: Annotated[
        float | None, typer.Option(min=0.05, max=0.95, help="Share of the GPU's memory for vLLM; 0.9 by default.")
    ] = None
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt with its completion in vLLM; the model's own by default.")
    ] = None
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that answer, with a model each; of several GPUs, one each.")
    ] = 1

    @property
    def is_torch(self) -> bool:
        """Whether the model is a checkpoint in PyTorch; options of the other engines are then refused.

        Raises:
            UserError: options that exclude each other.
        """
        if self.model_url is not None:
            self._refuse(self.engine != "torch", f"--engine {self.engine}", "is for a checkpoint here")
            self._refuse(self.processes > 1, "--processes", "is for a checkpoint here; see --concurrency")
        else:
            self._refuse(self.model_extra_body is not None, "--model-extra-body", "is for the model's server")
        if self.model_url is not None or self.engine == "torch":
            limits = self.gpu_memory is not None or self.max_length is not None
            self._refuse(limits, "--gpu-memory and --max-length", "are for --engine vllm")
        return self.model_url is None and self.engine == "torch"

    def _refuse(self, given: bool, name: str, reason: str) -> None:
        if given:
            server = "" if self.model_url is None else ", and --model-url names a server"
            raise UserError(f"{name} {reason}{server}")

    def other_model(
        self,
        name: str,
        taxonomy: Taxonomy,
        decoding: Decoding,
        limits: dict[str, Any],
        requests: Requests,
        cache: ReplyCache,
        key_variable: str,
        batch_size: int | None = None,
        ask: Callable[[Clip], str] | None = None,
    ) -> "ClipModel":
        """The model in vLLM or behind the server.

        Args:
            name: folder or hub name, or the name at the server.
            taxonomy: wheels for categories and scores.
            decoding: how completions are sampled.
            limits: fields of `ClipLimits` instead of the model's own.
            requests: options of requests to a server.
            cache: keeps the server's replies.
            key_variable: environment variable with the server's API key.
            batch_size: clips per batch; None takes 64.
            ask: the question about each clip; None takes the emotion question.
        """
        if self.model_url is not None:
            from mer_r1.evaluation.answerers.endpoint import Sending, ServedModel

            extra = parse_fields("--model-extra-body", self.model_extra_body)
            asked = Decoding(**{**vars(decoding), "extra_body": extra})
            client = requests.client(name, self.model_url, asked, cache, key_variable)
            sending = Sending(video=self.send_video, audio=self.send_audio, **limits)
            return ServedModel(client, taxonomy, sending, batch_size or 64, ask)
        from mer_r1.evaluation.answerers.vllm import EngineModel

        options = {"gpu_memory_utilization": self.gpu_memory, "max_model_len": self.max_length}
        options = {option: value for option, value in options.items() if value is not None}
        return EngineModel(name, taxonomy, decoding, batch_size or 64, limits, options, ask)
