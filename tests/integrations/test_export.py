"""Export for other engines: whole checkpoints that give back the thinker, and rows that their hosts read."""

import json
import shutil
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_corpus import write_corpus
from tiny_world import SMALL
from transformers import Qwen2_5OmniForConditionalGeneration

from mer_r1.data.manifest import read_manifest
from mer_r1.data.media.read import read_media
from mer_r1.emotions.thinking import question
from mer_r1.errors import UserError
from mer_r1.integrations.export import rows, whole_checkpoint
from mer_r1.model.families import QWEN3
from mer_r1.model.omni import load
from mer_r1.model.tiny import tiny


def same(one, other):
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def base(omni, tmp_path_factory):
    """A whole checkpoint of an untrained thinker, in two files, the second with a weight of its talker."""
    folder = tmp_path_factory.mktemp("base")
    omni.save(folder / "thinker")
    whole_checkpoint(folder / "thinker", folder / "whole")
    index = json.loads((folder / "whole" / "model.safetensors.index.json").read_text())
    index["weight_map"]["talker.codec_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / "whole" / "model.safetensors.index.json").write_text(json.dumps(index))
    talker = {"talker.codec_head.weight": torch.arange(6.0).view(2, 3)}
    save_file(talker, folder / "whole" / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    (folder / "whole" / "voices.txt").write_text("Chelsie")
    return folder / "whole"


def test_a_thinker_becomes_a_whole_model_that_the_library_loads(taught, taught_folder, tmp_path):
    whole_checkpoint(taught_folder, tmp_path / "whole")
    again = load(tmp_path / "whole")
    assert same(again, taught)
    assert again.settings == taught.settings
    whole = Qwen2_5OmniForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert not whole.has_talker
    ours, theirs = taught.model.state_dict(), whole.thinker.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_thinker_goes_back_into_its_base_and_the_talker_stays(taught, taught_folder, base, tmp_path):
    assert not same(load(base), taught)
    whole_checkpoint(taught_folder, tmp_path / "whole", str(base))
    assert same(load(tmp_path / "whole"), taught)
    kept = load_file(tmp_path / "whole" / "model-00002-of-00002.safetensors")
    assert kept["talker.codec_head.weight"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert (tmp_path / "whole" / "voices.txt").read_text() == "Chelsie"
    names = [json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (base, tmp_path / "whole")]
    assert names[0]["weight_map"] == names[1]["weight_map"]


def test_a_whole_model_of_float32_stays_float32(taught_folder, base, tmp_path):
    """An engine that believes the configuration must not round the weights."""
    config = json.loads((base / "config.json").read_text())
    half = shutil.copytree(base, tmp_path / "half")
    (half / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    whole_checkpoint(taught_folder, tmp_path / "whole", str(half))
    written = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (written["dtype"], written["thinker_config"]["dtype"]) == ("float32", "float32")


def test_what_is_no_base_is_refused_and_leaves_no_model(taught_folder, base, tmp_path):
    def refused(told, model=taught_folder, **how):
        with pytest.raises(UserError, match=told):
            whole_checkpoint(model, tmp_path / "out", **how)
        assert not (tmp_path / "out" / "config.json").exists()

    other = tiny([question("Hello.")], SMALL, 0)
    other.save(tmp_path / "other")
    refused(r"weights of another size \(thinker\.", base=str(base), model=tmp_path / "other")
    refused(r"holds a qwen2_5_omni_thinker model, expected the whole one", base=str(taught_folder))
    refused("holds a qwen2_5_omni model, expected a thinker alone", model=base)
    wrong = shutil.copytree(base, tmp_path / "wrong")
    weights = load_file(wrong / "model-00001-of-00001.safetensors")
    del weights["thinker.model.norm.weight"]
    save_file(weights, wrong / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    refused(r"other weights \(thinker\.model\.norm\.weight\): not its base", base=str(wrong))
    tiny([question("Hello.")], SMALL, 0, QWEN3).save(tmp_path / "qwen3")
    refused("a qwen3_omni_moe_thinker needs its whole checkpoint: give --base", model=tmp_path / "qwen3")


def test_a_model_is_not_written_over(taught_folder, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a model already"):
        whole_checkpoint(taught_folder, tmp_path)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """With both channels, without audio, without video, with the audio in a file of its own, a subtitle with a tag."""
    found = read_manifest(write_corpus(tmp_path_factory.mktemp("rows")))[:4]
    found[0] = replace(found[0], subtitle="a <video> of <audio>")
    return found


@pytest.mark.parametrize("host", ["swift", "verl"])
def test_rows_hold_question_media_and_gold(clips, host, tmp_path):
    assert rows(clips, host, tmp_path / "rows.jsonl", "short") == len(clips)
    found = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    channels = set()
    for row, clip in zip(found, clips, strict=True):
        (turn,) = row["messages" if host == "swift" else "prompt"]
        seen = read_media(clip.video, clip.audio)
        assert row["videos"] == ([str(Path(clip.video).resolve())] if seen.frames is not None else [])
        assert len(row["audios"]) == (seen.waveform is not None)
        asked = question(clip.subtitle, "short")
        assert "<" not in asked, "a subtitle must not add a placeholder"
        assert turn["content"] == "<video>" * len(row["videos"]) + "<audio>" * len(row["audios"]) + asked
        for file in row["audios"]:
            with wave.open(file) as sound:
                heard = np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / 32767
            assert np.abs(heard - np.clip(seen.waveform, -1, 1)).max() < 1 / 32767
        gold = row["solution"] if host == "swift" else row["reward_model"]["ground_truth"]
        assert gold == list(clip.labels)
        channels.add((len(row["videos"]), len(row["audios"])))
    assert channels == {(1, 1), (1, 0), (0, 1)}
    if host == "verl":
        assert [row["extra_info"] for row in found] == [{"index": i, "id": c.id} for i, c in enumerate(clips)]


def test_a_row_needs_gold(clips, tmp_path):
    bare = replace(clips[0], labels=None)
    with pytest.raises(UserError, match=r"^clip .*: no gold labels, which verl needs for the rewards$"):
        rows([bare], "verl", tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()


def test_the_command(run, corpus, taught_folder, tmp_path):
    manifest = ["--manifest", corpus, "--split", "all", "--clips", "0:2"]
    told = run("export", "--rows", "swift", *manifest, "--model", taught_folder, "--out", tmp_path / "rows.jsonl")
    assert told[:2] == (0, f"2 rows in {tmp_path / 'rows.jsonl'}\n")
    assert "Weigh face, voice and words." in (tmp_path / "rows.jsonl").read_text(), "the model's own short question"
    assert run("export", "--whole", "--model", taught_folder, "--out", tmp_path / "whole")[0] == 0
    for wrong in (["--whole", "--rows", "swift"], ["--whole"], ["--rows", "swift"], []):
        status, _, err = run("export", "--out", tmp_path / "x", *wrong)
        assert (status, err.count("\n")) == (2, 1)
