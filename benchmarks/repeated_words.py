"""Can an answer earn calibration by saying its word again? The terms of the same rollouts, first word repeated.

Run: python benchmarks/repeated_words.py --model runs/study/runs/mer-r1-s0-.../model \
         --manifest runs/study/scenes/corpus/manifest.jsonl

A policy samples one rollout a clip. Of each its reasoning and its first word are kept, and the answer becomes that word
once, twice, four times and so on. Delta+ (correct categories) and Delta- (incorrect ones) should not care: nothing is
said that was not said before. Printed are mean and standard deviation over rollouts, for both choices of anchors.
"""

import argparse
from pathlib import Path

import torch

from mer_r1.anchors import answer_tokens, category_mask, category_tokens
from mer_r1.calibration import calibration_terms, confidence
from mer_r1.features import FeatureCache
from mer_r1.inputs import encode_prompt
from mer_r1.model import load
from mer_r1.rollout import Sampling, anchor_rows, rescore, rollout
from mer_r1.study.gradients import chosen_clips
from mer_r1.taxonomy import builtin
from mer_r1.thinking import question


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a policy")
    parser.add_argument("--manifest", type=Path, required=True, help="of training clips with labels")
    parser.add_argument("--clips", default="2600:2696", help="slice of the training clips")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    args = parser.parse_args()
    omni, taxonomy = load(args.model), builtin()
    omni.model.eval()
    omni.freeze_towers()
    cache = FeatureCache(omni, args.manifest.parent / "features")
    clips = chosen_clips(str(args.manifest), "train", args.clips)
    prompts = [encode_prompt(omni, question(c.subtitle, omni.settings.question), cache.get(c)) for c in clips]
    ids = rollout(omni, prompts, 1, Sampling(72, seed=0)).completion_ids
    found = []
    for clip, prompt, completion in zip(clips, prompts, ids, strict=True):
        reasoning, _, answer = omni.tokenizer.decode(completion, skip_special_tokens=True).partition("<answer>")
        word = answer.partition("</answer>")[0].partition(",")[0].strip()
        if word.isalpha() and "</think>" in reasoning:
            found.append((clip, prompt, reasoning, word))
    tokens, names = category_tokens(taxonomy, omni.tokenizer)
    correct = torch.tensor([category_mask(clip.labels or (), taxonomy, names) for clip, *_ in found])
    placed = torch.zeros(len(found), int(tokens.partition.max()) + 1).index_add(1, tokens.partition, correct.float())
    known = placed[:, tokens.partition] > 0
    print(f"{len(found)} of {len(clips)} rollouts have a word to repeat")
    for times in args.times:
        texts = [f"{reasoning}<answer> {', '.join([word] * times)}</answer>" for *_, reasoning, word in found]
        completions = [omni.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        answers = [answer_tokens(completion, omni.tokenizer) for completion in completions]
        slow, fast = rescore(omni, [prompt for _, prompt, *_ in found], answers, completions, tokens, fast=True)
        for anchors in ("all", "first"):
            scores = [confidence(p, anchor_rows(answers), len(found), anchors) for p in (slow, fast)]
            terms = calibration_terms(scores[0], scores[1], correct, known, tokens.partition)
            cells = []
            for name, term in zip(("Delta+", "Delta-"), terms, strict=True):
                kept = term[~term.isnan()]
                cells.append(f"{name} {kept.mean():+.3f} (sd {kept.std():.3f})")
            print(f"{times:3} times, {anchors:5} anchors: {'  '.join(cells)}")


if __name__ == "__main__":
    main()
