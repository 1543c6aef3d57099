"""Cost of predicting clips, slow and fast, against a plain loop over transformers' `generate` with the same model.

Run: python perf/prediction.py --manifest runs/demo/scenes/manifest.jsonl

  ours   `predict`: a clip is decoded once and runs through the towers once, both answers continue one prompt, finished
         answers leave the batch
  plain  decoding, preprocessing and `generate` for every batch of clips, in one mode and then in the other

The two take turns on the same clips, greedy, with the same number of clips together. Prints CPU seconds, the ratio
with its range over the rounds, and how many answers have the same text.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.data.media.read import read_clip
from mer_r1.emotions.thinking import ThinkingMode, prefill, question
from mer_r1.emotions.wheels import builtin
from mer_r1.evaluation.predict import predict
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni, load
from mer_r1.model.prompts import encode_prompt, media_tensors
from mer_r1.rl.anchors import category_tokens
from mer_r1.rl.rollout import fast_prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--model", default="tiny-mer-r1")
    parser.add_argument("--split", default="test")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    omni = load(args.model)
    clips = [clip for clip in read_manifest(args.manifest) if clip.split == args.split][: args.clips]
    sampling = Sampling(args.max_new_tokens, 0.0)
    taxonomy = builtin()
    categories = category_tokens(taxonomy, omni.tokenizer)

    def ours() -> dict[tuple[str, str], str]:
        how = {"taxonomy": taxonomy, "sampling": sampling, "batch_size": args.batch_size, "categories": categories}
        return {(record.id, record.mode): record.completion for record in predict(omni, clips, **how)}

    def loop() -> dict[tuple[str, str], str]:
        return plain(omni, clips, args.batch_size, sampling)

    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    first, second = ours(), loop()  # also warms up
    for number in range(args.rounds):
        for name, way in [("ours", ours), ("plain", loop)][:: 1 if number % 2 else -1]:
            began = time.process_time()
            way()
            seconds[name].append(time.process_time() - began)
    ratios = [above / below for above, below in zip(seconds["plain"], seconds["ours"], strict=True)]
    for name, found in seconds.items():
        print(f"{name:<6} {spread(found)} CPU seconds, {len(clips) / statistics.median(found):.1f} clips a second")
    same = sum(first[key] == second[key] for key in first)
    print(f"plain / ours {spread(ratios)}; the same text: {same} of {len(first)}")
    if args.json:
        args.json.write_text(json.dumps({"seconds": seconds, "ratios": ratios}, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def plain(omni: Omni, clips: list[Clip], batch_size: int, sampling: Sampling) -> dict[tuple[str, str], str]:
    """Completions by clip and mode, from the library's own `generate` on raw media."""
    found = {}
    for mode in ThinkingMode:
        for start in range(0, len(clips), batch_size):
            batch = clips[start : start + batch_size]
            media = [media_tensors(omni, read_clip(clip, omni.settings.limits())) for clip in batch]
            prompts = [
                encode_prompt(omni, question(clip.subtitle, omni.settings.question), raw)
                for clip, raw in zip(batch, media, strict=True)
            ]
            if mode is ThinkingMode.FAST:
                prompts = [fast_prompt(omni, prompt) for prompt in prompts]
            padding = {"batch_first": True, "padding_side": "left"}
            rows = [prompt.input_ids for prompt in prompts]
            ids = pad_sequence(rows, padding_value=omni.tokenizer.pad_token_id, **padding)
            mask = pad_sequence([torch.ones_like(row) for row in rows], **padding)
            written = omni.model.generate(
                input_ids=ids, attention_mask=mask, **towers_input(media), max_new_tokens=sampling.max_new_tokens,
                do_sample=False,
            )  # fmt: skip
            texts = omni.tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
            found |= {(clip.id, mode.value): prefill(mode) + text for clip, text in zip(batch, texts, strict=True)}
    return found


def towers_input(media: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The batch's patches and padded spectrograms, as arguments of `generate`."""
    names = ("pixel_values_videos", "video_grid_thw", "video_second_per_grid")
    joined = {name: torch.cat([raw[name] for raw in media if name in raw]) for name in names if name in media[0]}
    mels = [raw["input_features"].T for raw in media if "input_features" in raw]
    if mels:
        joined["input_features"] = pad_sequence(mels, batch_first=True).mT
        joined["feature_attention_mask"] = pad_sequence(
            [torch.ones(len(mel), dtype=torch.long) for mel in mels], batch_first=True
        )
    return joined


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} (of {len(values)}: {min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
