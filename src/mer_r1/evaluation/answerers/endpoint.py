"""Answer clips with a model behind an OpenAI-compatible endpoint: video, audio and question as parts of one turn.

A server gets what a model in this process would see: the frames at the same moments and the audio of the same seconds
(`ClipLimits`). Servers differ in what they accept. The frames are sent as a video of nothing else (`video_url`) or, for
a server without video input, as images (`image_url`); the audio, which servers do not extract from a video, as a part
of its own: `audio_url` (vLLM, SGLang) or `input_audio` (OpenAI, vLLM). Everything is sent inside the request as data
URLs, so the server needs no access to our files.

Slow thinking is the model's answer to our question. Fast thinking prefills an empty think block. That needs a server
that continues an unfinished assistant turn (`continue_final_message`: vLLM, SGLang). A server that starts a new turn
would answer slowly under the name of fast, so the first fast questions check this.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mer_r1.data.clip import Clip
from mer_r1.data.media.container import DECODING_ERRORS, ClipLimits
from mer_r1.data.media.encode import MP4_TYPE, WAV_TYPE, data_url, jpeg, mp4, wav
from mer_r1.data.media.read import Media, read_clip
from mer_r1.emotions.thinking import ThinkingMode, prefill, question
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.chat import ChatPrompt, Reply, image_part, sound_part
from mer_r1.evaluation.llm.client import Client
from mer_r1.evaluation.records import Record, provenance, record_of_answer, record_of_error, versions

ANSWER_VERSION = "answer-1"
JPEG_QUALITY = 95
_PROBES = 3
_NEEDS = (
    "fast thinking needs a server that continues an unfinished assistant turn (continue_final_message, as vLLM and "
    "SGLang do); --think slow works without"
)
_RESTART = re.compile(r"<think|^\s*<answer>", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Sending(ClipLimits):
    """How a clip's video and audio are sent, and how much of them.

    Attributes:
        video: "video_url" sends the frames as an MP4 file, "frames" as JPEG images, "none" nothing.
        audio: "audio_url" or "input_audio" sends a WAV (mono, 16 kHz, 16 bit), "none" nothing.
    """

    video: Literal["video_url", "frames", "none"] = "video_url"
    audio: Literal["audio_url", "input_audio", "none"] = "audio_url"


class ServedModel:
    """A model behind a server.

    Args:
        client: sends the requests and keeps the replies.
        taxonomy: wheels for categories and scores.
        sending: what is sent of a clip, and how.
        batch_size: clips that are prepared, and held in memory, at a time.
        ask: the question about each clip; None takes the emotion question.
    """

    def __init__(
        self,
        client: Client,
        taxonomy: Taxonomy,
        sending: Sending | None = None,
        batch_size: int = 64,
        ask: Callable[[Clip], str] | None = None,
    ) -> None:
        self.client = client
        self.taxonomy = taxonomy
        self.sending = sending or Sending()
        self.batch_size = batch_size
        self.ask = ask
        self._continues = False

    @property
    def name(self) -> str:
        """The model's name at the server."""
        return self.client.name

    @property
    def settings(self) -> dict[str, Any]:
        """Model, decoding, and what is sent; the server's address does not decide the answers."""
        return {
            "engine": "endpoint",
            "model": self.name,
            "decoding": self.client.decoding.settings,
            "sending": asdict(self.sending),
        }

    def answer(self, clips: Sequence[Clip], modes: Sequence[ThinkingMode]) -> Iterator[Record]:
        """See `ClipModel.answer`; a clip without a reply gets a record with the reason."""
        source = provenance(self.name, self.client.decoding.seed, versions("mer-r1"))
        with ThreadPoolExecutor(min(8, len(clips))) as pool:
            found = list(pool.map(self._parts_or_error, clips))
        for mode in modes:
            asked = [_prompt(parts[0], mode) for parts in found if not isinstance(parts, str)]
            if mode is ThinkingMode.FAST and asked:
                self._require_continuation(asked[:_PROBES])
            replies = iter(self.client.complete(asked, ANSWER_VERSION))
            for clip, parts in zip(clips, found, strict=True):
                if isinstance(parts, str):
                    yield record_of_error(clip, mode, parts, source)
                else:
                    yield self._record(clip, mode, next(replies), source, parts[1])

    def _parts_or_error(self, clip: Clip) -> tuple[list[dict[str, Any]], list[str]] | str:
        try:
            return clip_parts(clip, self.sending, self.ask)
        except UserError as error:
            return str(error)

    def _record(self, clip: Clip, mode: ThinkingMode, reply: Reply, source: dict[str, Any], notes: list[str]) -> Record:
        problem = reply.error
        if mode is ThinkingMode.FAST:
            if reply.text is None and str(problem).startswith("4"):
                problem = f"{problem}; {_NEEDS}"
            elif reply.text is not None and _RESTART.search(reply.text):
                problem = f"the server began a new answer {reply.text!r:.60}; {_NEEDS}"
        if reply.text is None or problem is not None:
            return record_of_error(clip, mode, f"{clip.id}: {problem}", source)
        measured: dict[str, Any] = {"seconds": round(reply.seconds, 4), "tokens": reply.completion_tokens}
        measured |= {"finish_reason": reply.finish_reason, "notes": notes}
        return record_of_answer(clip, mode, prefill(mode) + reply.text, self.taxonomy, source, **measured)

    def _require_continuation(self, prompts: Sequence[ChatPrompt]) -> None:
        """Stop if the server begins a new turn for each of these prompts.

        Asks outside the cache: a wrong reply kept there would outlive the server that gave it.
        """
        if self._continues:
            return
        replies = replace(self.client, cache=None).complete(prompts, ANSWER_VERSION)
        texts = [reply.text for reply in replies if reply.text is not None]
        if texts and all(_RESTART.search(text) for text in texts):
            raise UserError(f"{self.name} began a new answer {texts[0]!r:.60} instead of continuing: {_NEEDS}")
        self._continues = True


def clip_parts(
    clip: Clip, sending: Sending, ask: Callable[[Clip], str] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Video, audio and question of a clip as parts of a user's turn, and the notes about what was read.

    A missing channel has no part.

    Raises:
        UserError: naming the clip: a file cannot be read.
    """
    try:
        media = read_clip(clip, sending.limits())
        asked = {"type": "text", "text": ask(clip) if ask else question(clip.subtitle)}
        return [*_picture(media, sending), *_sound(media, sending), asked], list(media.notes)
    except UserError as error:
        raise UserError(f"clip {clip.id}: {error}") from error


def _prompt(parts: list[dict[str, Any]], mode: ThinkingMode) -> ChatPrompt:
    asked: dict[str, Any] = {"role": "user", "content": parts}
    begun = prefill(mode)
    return ChatPrompt((asked, {"role": "assistant", "content": begun}) if begun else (asked,))


def _picture(media: Media, sending: Sending) -> Iterator[dict[str, Any]]:
    if media.frames is None or sending.video == "none":
        return
    if sending.video == "frames":
        yield from (image_part(jpeg(frame.transpose(1, 2, 0), JPEG_QUALITY)) for frame in media.frames)
        return
    try:
        video = mp4(media.frames, media.fps or 1.0 / max(media.seconds, 0.04))  # a single frame spans the clip
    except DECODING_ERRORS as error:
        raise UserError(f"its frames cannot be encoded as H.264 ({error}); send frames instead") from None
    yield {"type": "video_url", "video_url": {"url": data_url(MP4_TYPE, video)}}


def _sound(media: Media, sending: Sending) -> Iterator[dict[str, Any]]:
    if media.waveform is None or sending.audio == "none":
        return
    sound = wav(media.waveform, media.sampling_rate)
    if sending.audio == "input_audio":
        yield sound_part(sound)
    else:
        yield {"type": "audio_url", "audio_url": {"url": data_url(WAV_TYPE, sound)}}
