"""Does repeating a word earn calibration? The calibration terms of the same rollouts with the first word repeated.

Run: python perf/repeated_words.py --model runs/study/runs/mer-r1-s0-.../model \
         --manifest runs/study/scenes/corpus/manifest.jsonl

A policy samples one rollout per clip. Its reasoning and first word are kept, and the answer repeats that word once,
twice, four times and so on. The terms (recall side, precision side) should not change, because the repetition adds no
information. Prints mean and standard deviation over rollouts, for every choice of anchors.
"""

import argparse
from pathlib import Path

from mer_r1.emotions.thinking import format_completion, parse, question
from mer_r1.emotions.wheels import builtin
from mer_r1.model.features import FeatureCache
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import load
from mer_r1.model.prompts import encode_prompt
from mer_r1.rl.anchors import answer_tokens, category_tokens, terms_of
from mer_r1.rl.method import Method
from mer_r1.rl.rollout import Rollouts, anchor_rows, rescore, rollout
from mer_r1.training.recipe_files import select_clips
from mer_r1.training.recipes import DataFields


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the policy")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest of training clips with labels")
    parser.add_argument("--clips", default="600:696", help="slice of the training clips")
    levels = Method.ALLOWED["confidence_level"]
    parser.add_argument("--level", choices=levels, default="category", help="unit whose confidence is measured")
    formulas = ("answer", "difference")
    parser.add_argument("--calibration", choices=formulas, default="difference", help="formulation of the terms")
    parser.add_argument("--raw", action="store_true", help="do not renormalise a category's confidence in its wheel")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="numbers of repetitions")
    measure(parser.parse_args())


def measure(args: argparse.Namespace) -> None:
    omni, taxonomy = load(args.model), builtin()
    omni.model.eval()
    omni.freeze_towers()
    cache = FeatureCache(omni, args.manifest.parent / "features")
    clips = select_clips(DataFields(manifest=str(args.manifest), clips=args.clips))
    prompts = [encode_prompt(omni, question(c.subtitle, omni.settings.question), cache.get(c)) for c in clips]
    ids = rollout(omni, prompts, 1, Sampling(72, seed=0)).completion_ids
    parsed = [parse(omni.tokenizer.decode(completion, skip_special_tokens=True)) for completion in ids]
    found = [row for row in zip(clips, prompts, parsed, strict=True) if row[2].labels and row[2].reasoning]
    gold, prompts = [clip.labels for clip, *_ in found], [prompt for _, prompt, _ in found]
    print(f"{len(found)} of {len(clips)} rollouts have reasoning and a word to repeat")
    categories = category_tokens(taxonomy, omni.tokenizer, args.level)
    for times in args.times:
        texts = [format_completion(one.reasoning, one.labels[:1] * times) for *_, one in found]
        completions = [omni.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        answers = [answer_tokens(completion, omni.tokenizer) for completion in completions]
        slow, fast = rescore(omni, prompts, answers, completions, categories[0], fast=True)
        read = Rollouts(completions, [], anchor_rows(answers), slow, fast, answers)
        for anchors in Method.ALLOWED["anchors"]:
            method = Method(calibration=args.calibration, conditional=not args.raw, anchors=anchors)
            terms = (term[~term.isnan()] for term in terms_of(method, taxonomy, categories, gold, read))
            cells = [f"{name} {t.mean():+.3f} (sd {t.std():.3f})" for name, t in zip(("T+", "T-"), terms, strict=True)]
            print(f"{times:3} times, {anchors:8} anchors: {'  '.join(cells)}")


if __name__ == "__main__":
    main()
