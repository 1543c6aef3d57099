"""What the engines are tried on: eight tiny clips, a taught model as thinker and as whole checkpoint, and rows of them.

The clips are those of the tests: with both channels, without audio, without video, and with the audio in a file of its
own. The model has attention heads of 32, which vLLM's CPU build can run. Runs in the project's own environment.
"""

import json
import shutil
import sys

import torch
from report import HERE, WORK, WORLD
from torch import nn

sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "helpers")]

from dataclasses import replace

import tiny_world
from docs_world import write_world
from tiny_corpus import write_corpus
from transformers import Qwen2Config, Qwen2ForCausalLM

from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.thinking import format_completion, question
from mer_r1.emotions.wheels import builtin
from mer_r1.evaluation.predict import encode_clip
from mer_r1.integrations.export import rows, whole_checkpoint
from mer_r1.model.omni import load
from mer_r1.model.prompts import encode_prompt
from mer_r1.model.tiny import tiny


def main() -> None:
    """Write everything into the folder of the world, unless it is there."""
    if (WORLD / "done").exists():
        return
    shutil.rmtree(WORLD, ignore_errors=True)
    (WORLD / "clips").mkdir(parents=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clips = read_manifest(write_corpus(WORLD / "clips"))
    texts = [format_completion("The smile is wide and the voice is bright, so perhaps", [w]) for w in builtin().forms]
    sizes = replace(tiny_world.SMALL, num_heads=2, num_kv_heads=1)
    omni = tiny([*texts, *[question("I am so glad to see you again.")] * 50], sizes, 0)
    omni.settings = replace(omni.settings, question="full")  # a server knows no other wording
    omni.freeze_towers()
    prompts = [encode_prompt(omni, question(clip.subtitle), encode_clip(omni, clip)) for clip in clips]
    tiny_world.teach(omni, prompts, steps=80)
    omni.save(WORLD / "thinker")
    whole_checkpoint(WORLD / "thinker", WORLD / "whole")
    untied = load(WORLD / "thinker")
    untied.model.config.tie_word_embeddings = untied.model.config.text_config.tie_word_embeddings = False
    untied.model.lm_head.weight = nn.Parameter(untied.model.lm_head.weight.detach().clone())
    untied.model._tied_weights_keys = None
    untied.save(WORLD / "untied")
    text_model(omni)
    train = [clip for clip in clips if clip.split == "train"]
    for host in ("swift", "verl"):
        rows(train, host, WORLD / f"{host}.jsonl")
    plain = [{**json.loads(line), "videos": [], "audios": []} for line in (WORLD / "verl.jsonl").open()]
    for row in plain:
        row["prompt"][0]["content"] = row["prompt"][0]["content"].replace("<video>", "").replace("<audio>", "")
    (WORLD / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    (WORLD / "docs").mkdir()
    write_world(WORLD / "docs", WORLD / "thinker")
    (WORLD / "done").touch()


def text_model(omni: "tiny_world.Omni") -> None:
    """A text-only Qwen2 with the same tokenizer, for verl, which does not load Qwen2.5-Omni."""
    config = Qwen2Config(
        vocab_size=omni.model.config.text_config.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=omni.eos_ids[0],
        pad_token_id=omni.tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(WORLD / "text")
    omni.tokenizer.save_pretrained(WORLD / "text")


if __name__ == "__main__":
    WORK.mkdir(exist_ok=True)
    main()
