"""A model behind an endpoint, over real HTTP: what is sent of a clip, and that fast answers are fast ones."""

import base64
import io
import wave

import av
import numpy as np
import pytest
from llm_server import Server, said, status
from media_samples import gray_steps, tone, write_media
from PIL import Image
from tiny_corpus import moving_square

from mer_r1.data.clip import Clip
from mer_r1.data.media.container import ClipLimits, MediaLimits
from mer_r1.data.media.read import read_media
from mer_r1.emotions.thinking import FAST_PREFILL, ThinkingMode, question
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers import endpoint
from mer_r1.evaluation.answerers.endpoint import Sending, ServedModel, clip_parts
from mer_r1.evaluation.llm.cache import ReplyCache
from mer_r1.evaluation.llm.chat import Decoding
from mer_r1.evaluation.llm.client import Client
from mer_r1.evaluation.llm.responses import Retries

BOTH, SLOW, FAST = list(ThinkingMode), [ThinkingMode.SLOW], [ThinkingMode.FAST]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips, each of a picture and a sound file."""
    folder = tmp_path_factory.mktemp("clips")
    found = []
    for i, subtitle in enumerate(("Well, that is great.", "Leave me alone!", "")):
        video = write_media(folder / f"{i}.mp4", frames=6, fps=5, picture=moving_square(i), sound=tone(1.0))
        sound = write_media(folder / f"{i}.wav", sound=tone(0.8 + i / 10, hertz=300), audio_codec="pcm_s16le")
        found.append(Clip(f"clip-{i}", video, sound, subtitle, ("sad",)))
    return found


def served(server, tmp_path=None, sending=None, **client):
    cache = ReplyCache(tmp_path / "replies.sqlite") if tmp_path else None
    retries = Retries(attempts=2, first_wait=0.01)
    asked = Client("omni", server.base_url, Decoding(max_tokens=64), cache, retries=retries, **client)
    return ServedModel(asked, builtin(), sending, batch_size=2)


def is_fast(call):
    return call.body["messages"][-1]["role"] == "assistant"


def omni_server(call):
    """Answers in form, and goes on with what was begun."""
    return said(" sad, calm </answer>" if is_fast(call) else "<think>Hm.</think><answer>happy</answer>", written=7)


def received(part, folder, **limits):
    """The video of a request as its server decodes it, all of it."""
    (folder / "received.mp4").write_bytes(content(part))
    return read_media(folder / "received.mp4", limits=MediaLimits(max_frames=1000, max_seconds=1e6, **limits))


def content(part):
    kind = part["type"]
    if kind == "input_audio":
        return base64.b64decode(part[kind]["data"])
    return base64.b64decode(part[kind]["url"].partition(";base64,")[2])


def test_a_server_gets_picture_sound_and_question_and_is_made_to_answer_fast(clips, tmp_path):
    clip = clips[0]
    with Server(omni_server) as server:
        records = list(served(server).answer([clip], BOTH))
        calls = server.calls
    assert [(r.mode, r.completion, r.labels, r.tokens) for r in records] == [
        ("slow", "<think>Hm.</think><answer>happy</answer>", ["happy"], 7),
        ("fast", FAST_PREFILL + " sad, calm </answer>", ["sad", "calm"], 7),
    ]
    slow = next(call.body for call in calls if not is_fast(call))
    assert [part["type"] for part in slow["messages"][0]["content"]] == ["video_url", "audio_url", "text"]
    picture, sound, text = slow["messages"][0]["content"]
    assert picture["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert len(received(picture, tmp_path).frames) == 6, "as many as a model here would see"
    with wave.open(io.BytesIO(content(sound))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        assert file.getnframes() == len(read_media(clip.audio).waveform)
    assert text["text"] == question(clip.subtitle)
    assert (slow["max_tokens"], slow["temperature"], slow["seed"]) == (64, 0.0, 0)
    assert "continue_final_message" not in slow
    fast = [call.body for call in calls if is_fast(call)]
    assert len(fast) == 2, "tried out, then asked"
    for body in fast:
        assert body["messages"][-1] == {"role": "assistant", "content": FAST_PREFILL}
        assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_the_record_says_how_a_reply_ended_and_holds_the_reasoning_that_the_server_parsed_out(clips):
    with Server(lambda call: said("<answer>hap", finish_reason="length", reasoning_content="Hm.")) as server:
        (record,) = served(server).answer(clips[:1], SLOW)
        server.behave = lambda call: said("<answer>happy", finish_reason="abort")
        (broken,) = served(server).answer(clips[:1], SLOW)
    assert (record.completion, record.reasoning, record.finish_reason) == (
        "<think>Hm.</think><answer>hap",
        "Hm.",
        "length",
    )
    assert (broken.completion, broken.labels) == ("", [])
    assert "a broken reply, ended by 'abort'" in str(broken.error)


def test_frames_where_a_server_knows_no_videos(clips):
    clip = clips[0]
    parts, notes = clip_parts(clip, Sending(video="frames", audio="input_audio", num_frames=4))
    assert notes == []
    assert [part["type"] for part in parts] == ["image_url"] * 4 + ["input_audio", "text"]
    frames = read_media(clip.video).frames
    with Image.open(io.BytesIO(content(parts[0]))) as picture:
        assert picture.size == (frames.shape[3], frames.shape[2])
    assert parts[4]["input_audio"]["format"] == "wav"
    assert kinds(clip_parts(clip, Sending(video="none", audio="none"))) == ["text"]


def test_a_channel_that_a_clip_lacks_is_not_sent(clips, tmp_path):
    silent = write_media(tmp_path / "silent.mp4", frames=4, fps=4, picture=moving_square(1))
    found = clip_parts(Clip("silent", silent), Sending())
    assert (kinds(found), found[1]) == (["video_url", "text"], ["no sound"])
    assert kinds(clip_parts(Clip("heard", None, clips[0].audio), Sending())) == ["audio_url", "text"]
    with pytest.raises(UserError, match=r"clip gone: .*no such file"):
        clip_parts(Clip("gone", tmp_path / "gone.mp4"), Sending())


def kinds(found):
    return [part["type"] for part in found[0]]


@pytest.mark.parametrize(
    ("name", "codecs"),
    [("a.mp4", ("mpeg4", "aac")), ("a.ts", ("mpeg4", "aac")), ("a.avi", ("mpeg4", "mp3")), ("odd", ("ffv1", "flac"))],
)
def test_a_server_gets_the_seconds_and_frames_that_a_model_here_sees(tmp_path, name, codecs):
    path = write_media(
        tmp_path / name, frames=24, fps=2, sound=tone(12.0), video_codec=codecs[0], audio_codec=codecs[1],
        picture=lambda index: gray_steps(index, 47, 63), pix_fmt="bgr0" if codecs[0] == "ffv1" else "yuv420p",
        container_format=None if "." in name else "matroska",
    )  # fmt: skip
    limits = {"num_frames": 5, "max_seconds": 8.0}
    (picture, sound, _), notes = clip_parts(Clip("long", path), Sending(**limits))
    here = read_media(path, limits=ClipLimits(**limits).limits())
    assert "cut to the first 8 s of 12" in "".join(notes)
    assert notes == list(here.notes)
    assert picture["video_url"]["url"].startswith("data:video/mp4;base64,")
    there = received(picture, tmp_path)
    assert there.frames.shape == (5, 3, 48, 64), "an even number of rows and columns"
    assert np.abs(there.frames[:, :, :47, :63].astype(int) - here.frames).mean() < 2
    assert there.fps == pytest.approx(here.fps, rel=1e-3)
    assert 5 / there.fps == pytest.approx(8, abs=0.1)
    assert np.ptp(there.frame_seconds - here.frame_seconds) < 0.01, "the same distances"
    with wave.open(io.BytesIO(content(sound))) as file:
        assert file.getnframes() == len(here.waveform) == 8 * 16000
    images, _ = clip_parts(Clip("long", path), Sending(video="frames", max_pixels=600, **limits))
    with Image.open(io.BytesIO(content(images[0]))) as image:
        assert 500 < image.width * image.height <= 600
    assert len(images) == 5 + 2


def test_what_was_left_out_stands_in_the_records_of_a_server(clips, tmp_path):
    long = write_media(tmp_path / "a.mp4", frames=6, fps=1, sound=tone(6.0))
    with Server(omni_server) as server:
        model = served(server, sending=Sending(max_seconds=2.0))
        records = list(model.answer([Clip("long", long), clips[0]], BOTH))
    assert [(record.id, record.notes) for record in records if record.mode == "fast"] == [
        ("long", ["cut to the first 2 s of 6 s"]),
        ("clip-0", []),
    ]
    assert records[0].notes == records[2].notes
    assert model.settings["sending"]["max_seconds"] == 2.0, "part of what a folder of records is made with"


def test_a_computer_that_cannot_encode_says_so(clips, monkeypatch):
    monkeypatch.setattr(endpoint, "mp4", lambda *_: (_ for _ in ()).throw(av.codec.codec.UnknownCodecError("libx264")))
    with pytest.raises(UserError, match=r"clip clip-0: its frames cannot be encoded.*send frames instead"):
        clip_parts(clips[0], Sending())


@pytest.mark.parametrize("reply", ["<think>Let me see.</think><answer>sad</answer>", " <answer> sad </answer>"])
def test_a_server_that_begins_a_new_turn_cannot_be_asked_fast(clips, tmp_path, reply):
    with Server(lambda call: reply) as server:
        model = served(server, tmp_path)
        with pytest.raises(UserError, match=r"continue_final_message.*--think slow works without") as caught:
            list(model.answer(clips, FAST))
        assert "\n" not in str(caught.value)
        assert [record.error for record in model.answer(clips, SLOW)] == [None] * 3
    with Server(omni_server) as better:
        records = list(served(better, tmp_path).answer(clips, FAST))
    assert [record.labels for record in records] == [["sad", "calm"]] * 3, "no wrong reply was kept"


def test_a_server_that_refuses_a_prefill_says_what_is_needed(clips):
    with Server(lambda call: status(400, message="unknown argument") if is_fast(call) else "x") as server:
        records = list(served(server).answer(clips[:1], FAST))
    assert "400: unknown argument" in records[0].error
    assert "continue_final_message" in records[0].error


def test_one_clip_that_cannot_be_asked_does_not_stop_the_others(clips, tmp_path):
    asked = [Clip("gone", tmp_path / "gone.mp4"), *clips]
    refused = question(asked[2].subtitle)
    with Server(lambda call: status(400, message="too long") if refused in call.text else omni_server(call)) as server:
        records = list(served(server).answer(asked, SLOW))
        assert len(server.calls) == 3
    assert [record.error is None for record in records] == [False, True, False, True]
    assert "no such file" in records[0].error
    assert "too long" in records[2].error
