"""Model cards: what the folder of a trained model says about itself, with the metadata that model hubs read.

Training writes the card beside the weights; evaluation adds scores to it. A card without the marks of `model_card`,
such as a hand-written one, is left alone.
"""

import re
from collections.abc import Mapping, Sequence

BEGIN, END = "<!-- scores: begin -->", "<!-- scores: end -->"
UNSCORED = "Not evaluated yet; `mer-r1 evaluate --model FOLDER --manifest FILE --split test --out DIR` adds them."
STAGES = {
    "build": "The base of a tiny model: it describes a clip and answers directly; it cannot reason.",
    "sft": "After the cold start: supervised training on reasoning texts. Reinforcement learning is to follow.",
    "rl": "After reinforcement learning from emotion labels (method `{method}`), which rewards reasoning that makes "
    "the answer better.",
}
CARD = """---
{metadata}---

# {name}

A multimodal model that watches and hears a short clip and says which emotions the person shows, slow (it reasons
first) or fast (it answers at once). {stage} Trained with mer-r1, an implementation of MER-R1
([arXiv 2606.27652](https://arxiv.org/abs/2606.27652)).

| | |
|---|---|
| starting model | {start} |
| data | {data} |
{settings}

## Scores

{begin}
{unscored}
{end}

## Asking it

```console
mer-r1 predict clip.mp4 --model FOLDER --subtitle "What the person says."
mer-r1 app --model FOLDER
```

## Intended use and limits

- For research on emotion recognition with reasoning. Not for judging, hiring, grading, policing or diagnosing anybody.
- A label is what annotators of the training data would write, not what a person feels. It carries their culture and
  their mistakes, and the data's imbalance of age, gender, language and setting.
- The reasoning is text that made such labels likelier; it need not be the cause of the answer. Without subtitle, audio
  or video the answers are less reliable.
- Licence and terms are those of the starting model and of the data: check both before passing the model on.
"""


def model_card(
    name: str, stage: str, start: str, data: str, settings: Mapping[str, object], inherited: Mapping[str, str]
) -> str:
    """The card of a model that has just been trained.

    Args:
        name: title.
        stage: "build", "sft" or "rl".
        start: name of the starting model, a hub name or the name of a folder.
        data: what it was trained on.
        settings: recipe field -> value, as far as they matter to a reader.
        inherited: metadata of the starting model's card, see `metadata`; for a hub name its `base_model`.
    """
    kept = {key: inherited[key] for key in ("base_model", "license") if key in inherited}
    tags = ["emotion-recognition", "multimodal", "mer-r1"]
    tags += ["generated-data"] if "generated-data" in inherited.get("tags", "") else []
    about = {"library_name": "transformers", "pipeline_tag": "video-text-to-text", "language": "en"}
    known = {**kept, **about, "tags": f"[{', '.join(tags)}]"}
    rows = "\n".join(f"| `{key}` | {_cell(value)} |" for key, value in settings.items())
    return CARD.format(
        metadata="".join(f"{key}: {value}\n" for key, value in known.items()),
        name=name,
        stage=STAGES[stage].format(method=settings.get("method", "")),
        start=_cell(start),
        data=_cell(data),
        settings=rows,
        begin=BEGIN,
        end=END,
        unscored=UNSCORED,
    )


def metadata(card: str) -> dict[str, str]:
    """The lines `key: value` at the head of a card."""
    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    pairs = (line.partition(": ") for line in head.group(1).splitlines()) if head else ()
    return {key: value for key, sign, value in pairs if sign}


def with_scores(card: str, measured_on: str, rows: Sequence[tuple[str, ...]]) -> str | None:
    """A card with these scores in place of its former ones; None for a card without the marks.

    Args:
        card: the card.
        measured_on: data, split and number of clips.
        rows: mode, precision, recall and F1, each as text with its interval.
    """
    start, end = card.find(BEGIN), card.find(END)
    if not 0 <= start < end:
        return None
    table = ["| mode | precision | recall | F1 |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    text = f"On {measured_on}; means over clips with 95 % bootstrap intervals.\n\n" + "\n".join(table)
    return f"{card[: start + len(BEGIN)]}\n{text}\n{card[end:]}"


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
