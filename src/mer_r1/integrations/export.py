"""What other engines need of ours: a whole checkpoint around a thinker, and a manifest as rows of their data sets.

vLLM's server, ms-swift and lmms-eval load whole omni models; our training writes the thinker alone. `whole_checkpoint`
puts it back into the checkpoint that it came from, file by file, so that no more than one of them is in memory; without
a base it becomes a whole model without a talker. (`model.omni.load` goes the other way: it reads a thinker out of a
whole checkpoint.)

`rows` writes what ms-swift and verl read: the question with its placeholders, video and audio as files that their
decoders take, and the gold words. Every clip's audio becomes a WAV file of its own: their audio readers open no video.
Both hosts choose the frames by themselves, as their own settings say.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import read_object, write_atomically
from mer_r1.data.media.container import ClipLimits
from mer_r1.data.media.encode import wav
from mer_r1.data.media.read import read_media
from mer_r1.emotions.thinking import question
from mer_r1.errors import UserError, printable
from mer_r1.model.absent_towers import weight_files
from mer_r1.model.omni import SETTINGS_FILE, loading
from mer_r1.rl.vllm.engine import weight_name, whole_config

HOSTS = ("swift", "verl")
PROCESSOR = ("*token*", "vocab*", "merges*", "*template*", "*processor*", "preprocessor_config.json", SETTINGS_FILE)
"""Files of a model folder that say how text and media are read."""


def whole_checkpoint(model: Path, out: Path, base: str | None = None) -> None:
    """Write a whole omni checkpoint around a thinker.

    Args:
        model: folder of the thinker.
        out: output folder; must not hold a model.
        base: folder or hub name of the whole checkpoint that the thinker came from, whose talker is kept; None leaves
            the talker out.

    Raises:
        UserError: the folder holds no thinker alone, or the base is none of its kind or size.
    """
    if (out / "config.json").exists():
        raise UserError(f"{printable(out)} holds a model already: choose another folder")
    config = read_object(model / "config.json")
    kind = str(config.get("model_type"))
    if not kind.endswith("_thinker"):
        raise UserError(f"{printable(model)} holds a {kind} model, expected a thinker alone, as training writes it")
    with loading(model, "the weights of a thinker"):
        ours = _Weights(weight_files(str(model)), weight_name)
    out.mkdir(parents=True, exist_ok=True)
    whole = _without_talker(model, ours, out, config) if base is None else _into(base, ours, out, config)
    for pattern in PROCESSOR:
        for file in model.glob(pattern):
            shutil.copy(file, out / file.name)
    # Last: a folder that was not finished has no configuration, and no engine takes it.
    write_atomically(out / "config.json", json.dumps(whole, indent=2) + "\n")


class _Weights:
    """Weights of some safetensors files by the names of the whole model."""

    def __init__(self, files: Sequence[str], named: Callable[[str], str] = str) -> None:
        self.files = {file: safe_open(file, framework="pt") for file in files}
        self.places = {named(key): (file, key) for file, handle in self.files.items() for key in handle.keys()}  # noqa: SIM118

    def read(self, name: str) -> Tensor:
        file, key = self.places[name]
        return self.files[file].get_tensor(key)

    def shape(self, name: str) -> list[int]:
        file, key = self.places[name]
        return list(self.files[file].get_slice(key).get_shape())


def _into(base: str, ours: _Weights, out: Path, thinker: Mapping[str, Any]) -> dict[str, Any]:
    from huggingface_hub import snapshot_download

    with loading(base, "a whole omni checkpoint"):
        folder = Path(base) if Path(base).is_dir() else Path(snapshot_download(base))
        theirs = _Weights(weight_files(folder))
    config = read_object(folder / "config.json")
    kind, expected = config.get("model_type"), thinker["model_type"].removesuffix("_thinker")
    if kind != expected:
        raise UserError(f"{base} holds a {kind} model, expected the whole one, {expected}")
    source = _sources(base, ours, theirs)
    for file in theirs.files:
        names = [name for name, (place, _) in theirs.places.items() if place == file]
        held = {name: ours.read(source[name]) if name in source else theirs.read(name) for name in names}
        save_file(held, out / Path(file).name, metadata={"format": "pt"})
    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name != "config.json":
            shutil.copy(path, out / path.name)
    for part in (config, config["thinker_config"]):  # an engine rounds the weights to the dtype that it reads here
        part.pop("torch_dtype", None)
        part["dtype"] = thinker["dtype"]
    return config


def _sources(base: str, ours: _Weights, theirs: _Weights) -> dict[str, str]:
    # Each weight of the base's thinker, and ours that takes its place.
    replaced = [name for name in theirs.places if name.startswith("thinker.")]
    tied = {"thinker.lm_head.weight": "thinker.model.embed_tokens.weight"}  # saved once where they are one
    source = {name: name if name in ours.places else tied.get(name, name) for name in replaced}
    absent = sorted({*source.values()} - ours.places.keys()) + sorted(ours.places.keys() - {*replaced, *tied})
    if absent or not replaced:
        raise UserError(f"{base} and the thinker have other weights ({(absent or ['thinker.*'])[0]}): not its base")
    for name in replaced:
        if theirs.shape(name) != ours.shape(source[name]):
            sizes = f"{ours.shape(source[name])} here, {theirs.shape(name)} there"
            raise UserError(f"{base} has weights of another size ({name}: {sizes}): not the base of this thinker")
    return source


def _without_talker(model: Path, ours: _Weights, out: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig

    whole = whole_config(AutoConfig.from_pretrained(model, trust_remote_code=False))
    if whole.model_type == config["model_type"]:
        raise UserError(f"a {config['model_type']} needs its whole checkpoint: give --base")
    whole.enable_audio_output = False
    index: dict[str, str] = {}
    for number, file in enumerate(ours.files, start=1):
        names = [name for name, (place, _) in ours.places.items() if place == file]
        shard = f"model-{number:05d}-of-{len(ours.files):05d}.safetensors"
        save_file({name: ours.read(name) for name in names}, out / shard, metadata={"format": "pt"})
        index |= dict.fromkeys(names, shard)
    size = sum(Path(file).stat().st_size for file in ours.files)
    index_file = {"metadata": {"total_size": size}, "weight_map": index}
    write_atomically(out / "model.safetensors.index.json", json.dumps(index_file, indent=2) + "\n")
    shutil.copy(model / "generation_config.json", out / "generation_config.json")
    torch.save({}, out / "spk_dict.pt")  # the voices of a talker; the library asks for the file
    return json.loads(whole.to_json_string(use_diff=False))  # type: ignore[no-any-return]


def rows(clips: Sequence[Clip], host: str, out: Path, style: str = "full", limits: ClipLimits | None = None) -> int:
    """Write clips as a data set of a host; returns the number of rows.

    Args:
        clips: clips with gold labels.
        host: one of `HOSTS`.
        out: JSONL file; the audio goes into a folder beside it, `<name>_audio`.
        style: wording of the question, "full" or "short".
        limits: how much of each clip's audio is written.

    Raises:
        UserError: a clip has no gold labels, or its media cannot be read.
    """
    folder = out.with_name(f"{out.stem}_audio").resolve()
    lines = []
    for index, clip in enumerate(clips):
        if not clip.labels:
            raise UserError(f"clip {clip.id}: no gold labels, which {host} needs for the rewards")
        media = read_media(clip.video, clip.audio, (limits or ClipLimits()).limits())
        asked = question(clip.subtitle, style)  # a subtitle has no placeholders: its "<" is replaced
        videos = [str(Path(clip.video).resolve())] if clip.video and media.frames is not None else []
        audios = []
        if media.waveform is not None:
            audios = [str(folder / f"{index}.wav")]
            write_atomically(audios[0], wav(media.waveform, media.sampling_rate))
        turn = {"role": "user", "content": "<video>" * len(videos) + "<audio>" * len(audios) + asked}
        lines.append(_row(host, index, clip, turn, videos, audios))
    write_atomically(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return len(lines)


def _row(
    host: str, index: int, clip: Clip, turn: dict[str, str], videos: list[str], audios: list[str]
) -> dict[str, Any]:
    gold = list(clip.labels or ())
    if host == "swift":
        return {"messages": [turn], "videos": videos, "audios": audios, "solution": gold}
    return {
        "data_source": "mer-r1",
        "prompt": [turn],
        "videos": videos,
        "audios": audios,
        "reward_model": {"style": "rule", "ground_truth": gold},
        "extra_info": {"index": index, "id": clip.id},
    }
