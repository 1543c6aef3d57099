"""Extract labels from completions: by rule where there is an `<answer>` list, else by asking a language model.

MER-UniBench has a language model read every answer and name the emotions in it, and turn these into a sentiment with
another request. The words of an `<answer>` are labels already and need no reader, in whatever form they are listed
(`emotions.answers`). For any other text this module asks in our own words, with every rule of the benchmark's
instruction, and cleans the reply exactly as the reference does (AffectGPT release).

A language model may reply with prose, in another language, or not at all. The reference scores any reply. Here a reply
that did not end properly, or holds no list of English words, is sent back once with the reason. If the second is no
better, the item has an error and no labels, so that it cannot be scored by accident, and the next run asks anew.
`checked=False` accepts every reply, as the reference does.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mer_r1.emotions.answers import answer_words, rule_doubt
from mer_r1.emotions.sentiment import sentiment_of
from mer_r1.emotions.thinking import TAG, parse
from mer_r1.emotions.wheels import Taxonomy, parse_labels
from mer_r1.errors import UserError
from mer_r1.evaluation.labels.replies import Verdict, read_as_reference, read_labels, read_sentiment
from mer_r1.evaluation.llm.chat import ChatPrompt, OnReply, Reply, TextModel

LABELS_VERSION = "labels-1"
SENTIMENT_VERSION = "sentiment-1"
LABELS_INSTRUCTION = """\
You are an expert in human emotion. The text below holds clues about one or more people in a scene. Say what the main \
person feels. The main person is the one about whom the clues say most. Name every emotional state that the text \
makes clear, in English, as a list in square brackets with commas between the states. Leave out what is vague or only \
guessed. If no state is clear, write an empty list. Write nothing but the list.

Text: There is a man by the window. Nothing here shows what state he is in.
List: []

Text: She laughs at the news, but her eyes are wet, and she shouts at him: she is happy, sad and angry all at once.
List: [happy, sad, angry]

Text: """
SENTIMENT_INSTRUCTION = """\
You are an expert in human emotion. You get a few words that describe what a person feels. Which is the most likely \
sentiment of that person: positive, negative or neutral? Write that one word at once, in lower case, without any \
analysis.

Words: [joyful]
Sentiment: positive

Words: []
Sentiment: neutral

Words: """

_ANSWER_TAG = re.compile(r"</?answer>", re.IGNORECASE)


@dataclass(frozen=True)
class Extracted:
    """Labels or sentiment extracted from one text.

    Attributes:
        value: the label string such as "[happy, sad]", or the sentiment; None where `error` says why there is none.
        source: "answer": by rule from the answer; "llm": from a reply; "rules": by the wheels; "empty": the text is
            blank.
        reply: raw reply of the language model; None without one.
        error: why there is no value; None if there is one.
        doubt: why the accepted value is doubtful; None if it is not.
    """

    value: str | None
    source: str
    reply: str | None = None
    error: str | None = None
    doubt: str | None = None

    @property
    def labels(self) -> list[str]:
        """The labels in `value`, as the benchmark parses them; [] where there is no value."""
        return parse_labels(self.value)


def label_string(labels: Sequence[str]) -> str:
    """Labels in the form of the benchmark's files.

    >>> label_string(["happy", "sad"])
    '[happy, sad]'
    """
    return f"[{', '.join(labels)}]"


def labels_by_rule(completion: str) -> Extracted | None:
    """The words of the `<answer>`; None where a language model must read the text.

    That is a text without answer tags, or with anything but a list of words in them (see `answers.answer_words`). An
    empty answer gives no labels, and so does an empty completion.
    """
    if not TAG.sub("", completion).strip():
        return Extracted("[]", "answer" if _ANSWER_TAG.search(completion) else "empty")
    if not _ANSWER_TAG.search(completion):
        return None
    labels = answer_words(parse(completion).answer)
    return None if labels is None else Extracted(label_string(labels), "answer")


def label_field(value: Any) -> Any:
    """Labels in a field of predictions, as they are; of a raw answer, which has tags, its words.

    Raises:
        UserError: it is a text that only a language model can read.
    """
    if not isinstance(value, str) or not TAG.search(value):
        return value
    found = labels_by_rule(value)
    if found is None:
        raise UserError("no labels, only a text: `mer-r1 extract` reads it")
    return found.value


def extract_labels(
    completions: Sequence[str],
    model: TextModel | None,
    taxonomy: Taxonomy | None = None,
    checked: bool = True,
    on_reply: OnReply | None = None,
) -> list[Extracted]:
    """Labels of each completion: by rule, else by asking `model`.

    Args:
        completions: raw texts.
        model: reads texts that no rule can; None leaves them with an error.
        taxonomy: wheels with the known words, to mark replies without any; None skips that check.
        checked: whether replies that are not a list of English words are sent back and then refused.
        on_reply: callback called for each first reply; its index counts the texts that were asked about.

    Raises:
        UserError: as `TextModel.complete` does.
    """
    found = [labels_by_rule(completion) for completion in completions]
    texts = [TAG.sub(" ", text).strip() for text, rule in zip(completions, found, strict=True) if rule is None]
    if model is None:
        missing = "no list of words in an <answer>, and no language model was given to read the text"
        read = iter([Extracted(None, "llm", error=missing)] * len(texts))
    else:
        asked = [ChatPrompt.user(f"{LABELS_INSTRUCTION}{text}\nList:") for text in texts]
        read = iter(_ask(model, asked, LABELS_VERSION, lambda reply: read_labels(reply, taxonomy), checked, on_reply))
    return [next(read) if rule is None else replace(rule, doubt=rule_doubt(rule.labels, taxonomy)) for rule in found]


def extract_sentiments(
    label_strings: Sequence[str], model: TextModel, checked: bool = True, on_reply: OnReply | None = None
) -> list[Extracted]:
    """Sentiment of each label string, by asking `model`.

    Args:
        label_strings: label strings such as "[happy, sad]".
        model: language model.
        checked: whether a reply must be one of the three words, in any case and with any punctuation around it; the
            reference accepts every reply, and counts anything but the three words as neutral.
        on_reply: callback called for each first reply.

    Raises:
        UserError: as `TextModel.complete` does.
    """
    asked = [ChatPrompt.user(f"{SENTIMENT_INSTRUCTION}{words}\nSentiment:") for words in label_strings]
    return _ask(model, asked, SENTIMENT_VERSION, read_sentiment, checked, on_reply)


def sentiments_by_rule(label_strings: Sequence[str], taxonomy: Taxonomy | None = None) -> list[Extracted]:
    """Sentiment of each label string by the wheels (`sentiment.sentiment_of`).

    Labels without any word on a wheel give an error; where only some words are missing, the value is doubtful.

    Args:
        label_strings: label strings such as "[happy, sad]".
        taxonomy: wheels for words that the built-in ones do not know.
    """
    found = []
    for text in label_strings:
        labels = parse_labels(text)
        verdict = sentiment_of(labels, taxonomy)
        unknown = f"no wheel places {', '.join(verdict.unplaced)}" if verdict.unplaced else None
        if labels and len(verdict.unplaced) == len(set(labels)):
            found.append(Extracted(None, "rules", error=unknown))
        else:
            found.append(Extracted(verdict.sentiment, "rules", doubt=unknown))
    return found


def _ask(
    model: TextModel,
    prompts: Sequence[ChatPrompt],
    version: str,
    read: Callable[[str], Verdict],
    checked: bool,
    on_reply: OnReply | None,
) -> list[Extracted]:
    """Read the replies to all prompts. Those of an earlier run that cannot be read are asked for anew."""
    read = read if checked else read_as_reference
    found = _replies(model, prompts, version, read, checked, on_reply)
    if stale := [i for i, (reply, verdict) in enumerate(found) if reply.cached and verdict[0] is None]:
        fresh = [replace(prompts[i], fresh=True) for i in stale]
        again = dict(zip(stale, _replies(model, fresh, version, read, checked, None), strict=True))
        found = [again.get(i, entry) for i, entry in enumerate(found)]
    return [_extracted(reply, verdict) for reply, verdict in found]


def _replies(
    model: TextModel,
    prompts: Sequence[ChatPrompt],
    version: str,
    read: Callable[[str], Verdict],
    checked: bool,
    on_reply: OnReply | None,
) -> list[tuple[Reply, Verdict]]:
    """Ask all prompts; if checked, send wrong or doubtful replies back once."""
    replies = model.complete(prompts, version, on_reply)
    verdicts = [_verdict(reply, read, checked) for reply in replies]
    places = [i for i, reply in enumerate(replies) if checked and reply.text is not None and verdicts[i][1] is not None]
    if places:
        form = "one of the three words"
        if version == LABELS_VERSION:
            form = "a list of English emotion words in square brackets"
        problems = [f"This cannot be used: {verdicts[i][1]}. Write nothing but {form}." for i in places]
        back = [prompts[i].again(str(replies[i].text), text) for i, text in zip(places, problems, strict=True)]
        for place, reply in zip(places, model.complete(back, version), strict=True):
            verdict = _verdict(reply, read, checked)
            if verdict[0] is not None:  # else keep the first: a doubtful value is better than none
                replies[place], verdicts[place] = reply, verdict
    return list(zip(replies, verdicts, strict=True))


def _verdict(reply: Reply, read: Callable[[str], Verdict], checked: bool) -> Verdict:
    problem = reply.problem
    if problem is not None and (checked or not reply.final):
        return None, problem
    value, doubt = read(reply.final)
    return value, doubt or problem


def _extracted(reply: Reply, verdict: Verdict) -> Extracted:
    value, problem = verdict
    if value is not None:
        return Extracted(value, "llm", reply.text, doubt=problem)
    if reply.text is None:
        return Extracted(None, "llm", error=reply.error)
    return Extracted(None, "llm", reply.text, f"the reply {reply.text!r:.80} is unusable: {problem}")
