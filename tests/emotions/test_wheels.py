"""Words to sectors: the official look-ups word by word, and the built-in wheels' structure, coverage and sense."""

import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.emotions import wheels as taxonomy
from mer_r1.emotions.official_wheels import read_forms, read_rings
from mer_r1.emotions.wheels import EmotionWheel, Taxonomy, builtin, parse_labels
from mer_r1.errors import UserError

TABLES: dict[str, Any] = json.loads(
    resources.files("mer_r1.emotions").joinpath("wheels.json").read_text(encoding="utf-8")
)
NAMES = [wheel["name"] for wheel in TABLES["wheels"]]
FORMS = sorted(builtin().forms)


@pytest.fixture(scope="module")
def official(shared: Path) -> Taxonomy:
    return taxonomy.official(shared / "emotion_wheel")


# --- the official tables


def test_every_row_of_the_reference_word_map(shared: Path, official: Taxonomy) -> None:
    rows = json.loads((shared / "benchmarks/reference/word_map.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 200
    for row in rows:
        mapped = official.map_row(row["word"])
        assert mapped == {key: row[key] for key in mapped}
        assert list(mapped) == [key for key in row if key in mapped]  # in the order of the reference
    assert len(mapped) == 13


def test_the_counts_that_the_tables_are_documented_with(official: Taxonomy) -> None:
    assert len(official.forms) == 7386
    assert len(official.synonyms) == 1255
    assert sum(len(bases) > 1 for bases in official.forms.values()) == 887
    unmapped = [len(official.forms) - len(official.placed(wheel)) for wheel in official.wheels]
    assert unmapped == [3333, 2986, 4146, 3312, 4331]
    assert [len(official.sectors(wheel)) for wheel in official.wheels] == [6, 7, 6, 6, 6]
    assert [len(official.sectors(wheel, 2)) for wheel in official.wheels] == [36, 41, 36, 48, 36]


def test_the_official_rule_is_alphabetical_not_semantic(official: Taxonomy) -> None:
    fear = [official.sector("fear", wheel) for wheel in range(5)]
    assert fear == ["scared", "happy", "joyful", "genius", "joyful"]
    assert official.sector("neutral", 0) is None
    assert official.base("neutral") is None


@pytest.mark.parametrize("name", ["format.csv", "synonym.xlsx", "wheel3.xlsx"])
def test_a_missing_or_broken_official_file_is_named(shared: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "wheels"
    shutil.copytree(shared / "emotion_wheel", folder)
    folder.chmod(0o755)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        taxonomy.official(folder)
    (folder / name).write_bytes(b"\xff\xfe no table")
    with pytest.raises(UserError, match=name):
        taxonomy.official(folder)


def test_missing_columns_are_named(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    shutil.copytree(shared / "emotion_wheel", folder)
    folder.chmod(0o755)
    for target, source in (("wheel1.xlsx", "synonym.xlsx"),):
        (folder / target).unlink()
        shutil.copy(folder / source, folder / target)
    with pytest.raises(UserError, match=r"wheel1\.xlsx: missing column level1, level2, level3 \(found: word_run1"):
        taxonomy.official(folder)
    (folder / "format.csv").unlink()
    (folder / "format.csv").write_text("word,forms\nhappy,happy\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"format\.csv: missing column name, format"):
        taxonomy.official(folder)


def sheet(path: Path, fill) -> Path:
    book = openpyxl.Workbook()
    book.active.append(["level1", "level2", "level3"])
    fill(book.active)
    book.save(path)
    return path


def test_a_sheet_is_read_whatever_lies_far_to_the_right(tmp_path: Path) -> None:
    def fill(active):
        active.append(["joy", "zest", "happy"])
        active.cell(2, 16384, "x")

    inner, outer = read_rings(sheet(tmp_path / "wheel1.xlsx", fill))
    assert inner["happy"] == "joy"
    assert outer["happy"] == "zest"


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        (lambda active: None, "a header without rows"),
        (lambda active: active.cell(1048576, 16384, "x"), "more than 20000 rows"),
    ],
)
def test_a_sheet_without_rows_or_with_millions_is_refused(tmp_path: Path, fill, told: str) -> None:
    with pytest.raises(UserError, match=rf"wheel1\.xlsx: {told}"):
        read_rings(sheet(tmp_path / "wheel1.xlsx", fill))


def test_what_openpyxl_thinks_of_styles_is_no_line(tmp_path: Path, recwarn) -> None:
    path = sheet(tmp_path / "wheel1.xlsx", lambda active: active.append(["joy", "zest", "happy"]))
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["xl/styles.xml"] = re.sub(rb"<cellStyles.*</cellStyles>", b"", parts["xl/styles.xml"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    openpyxl.load_workbook(path)
    assert "no default style" in str(recwarn.pop().message)
    assert read_rings(path)[0]["happy"] == "joy"
    assert not list(recwarn)


def test_a_sheet_that_unpacks_to_much_more_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = sheet(tmp_path / "wheel1.xlsx", lambda active: active.append(["joy", "zest", "happy"]))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/more.xml", b" " * 2**25)
    with pytest.raises(UserError, match=r"it unpacks to 335\d{5} bytes, expected at most 16777216"):
        read_rings(path)


@pytest.mark.parametrize(("rows", "told"), [("", "the header only"), ("happier,happy\nhappier\n", "a row without")])
def test_a_table_of_forms_needs_rows_with_names(tmp_path: Path, rows: str, told: str) -> None:
    (tmp_path / "format.csv").write_text("format,name\n" + rows, encoding="utf-8")
    with pytest.raises(UserError, match=rf"format\.csv: .* got {told}"):
        read_forms(tmp_path / "format.csv")


def test_a_missing_folder_is_an_error_and_none_means_built_in(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        taxonomy.load(tmp_path / "nowhere")
    assert taxonomy.load(None) is builtin()


def test_every_string_of_the_reference_list_parser(shared: Path) -> None:
    cases = json.loads((shared / "benchmarks/reference/list_parse.json").read_text(encoding="utf-8"))
    assert len(cases) >= 20
    for case in cases:
        if isinstance(case["out"], str):  # "EXC IndexError": the reference raises, and so do we, with a message
            with pytest.raises(UserError):
                parse_labels(case["in"])
        else:
            assert parse_labels(case["in"]) == case["out"], case


# --- label strings


def test_a_lone_opening_bracket_is_an_error() -> None:
    with pytest.raises(UserError, match="opens a list"):
        parse_labels("[")
    assert parse_labels("]") == []


def test_lists_arrays_and_missing_values() -> None:
    assert parse_labels(["Happy ", "[sad]"]) == ["Happy ", "[sad]"]  # untouched
    assert parse_labels(np.array(["happy", "sad"])) == ["happy", "sad"]
    assert parse_labels(None) == parse_labels(float("nan")) == parse_labels(()) == []


@pytest.mark.parametrize("labels", [3, 1.5, {"happy": 1}, b"happy"])
def test_what_holds_no_labels_is_refused(labels: object) -> None:
    with pytest.raises(UserError, match="labels"):
        parse_labels(labels)


@given(st.text())
def test_parsed_pieces_are_trimmed_and_free_of_separators(text: str) -> None:
    if text == "[":
        return
    pieces = parse_labels(text)
    assert all(piece and piece == piece.strip() and not set(piece) & set("'\",") for piece in pieces)


# --- the built-in wheels: structure


def test_size() -> None:
    labels = {
        label for wheel in TABLES["wheels"] for outer in wheel["sectors"].values() for ring in outer.items()
        for label in (ring[0], *ring[1])
    }  # fmt: skip
    assert len(NAMES) == 5
    assert len(labels) >= 200
    assert len(FORMS) >= 1200
    assert all(wheel.source for wheel in builtin().wheels)
    assert [len(builtin().sectors(name)) for name in NAMES] == [8, 8, 6, 8, 10]


def test_the_documentation_states_the_sizes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "wheels.md").read_text(encoding="utf-8")
    for number, name in enumerate(NAMES, start=1):
        sizes = [len(builtin().sectors(name, level)) for level in (1, 2)]
        assert f"| {number} | `{name}` | {sizes[0]} | {sizes[1]} |" in text
    families, bases = TABLES["families"], builtin().synonyms
    assert f"{len(families)} families of near-synonyms, {len(bases):,} base words, {len(FORMS):,} surface forms" in text


def test_every_published_label_lies_in_its_own_sector() -> None:
    for wheel in TABLES["wheels"]:
        for inner, outers in wheel["sectors"].items():
            for outer, labels in outers.items():
                for label in (outer, *labels):
                    places = builtin().sector(label, wheel["name"], 1), builtin().sector(label, wheel["name"], 2)
                    assert places == (inner, outer), (wheel["name"], label)


def test_both_rings_agree_for_every_word() -> None:
    for wheel in TABLES["wheels"]:
        parent = {outer: inner for inner, outers in wheel["sectors"].items() for outer in outers}
        for form in FORMS:
            outer = builtin().sector(form, wheel["name"], 2)
            assert builtin().sector(form, wheel["name"], 1) == (None if outer is None else parent[outer])


def test_every_sector_has_words_and_they_lead_back_to_it() -> None:
    for name in NAMES:
        for level in (1, 2):
            members = [builtin().forms_of(name, sector, level) for sector in builtin().sectors(name, level)]
            assert all(members)
            assert sum(map(len, members)) == len(set().union(*members)) == len(builtin().placed(name, level))
            for sector, words in zip(builtin().sectors(name, level), members, strict=True):
                assert builtin().categories(words, name, level) == {sector}


def test_forms_are_lower_case_trimmed_and_free_of_separators() -> None:
    assert all(form == form.lower().strip() and not set(form) & set(",;/'\"[]") for form in FORMS)
    assert all(len(bases) == 1 for bases in builtin().forms.values())
    assert all(family in builtin().forms for family in TABLES["families"])


@given(st.sampled_from(FORMS), st.sampled_from(NAMES), st.sampled_from([1, 2]))
def test_case_and_blanks_do_not_matter(form: str, name: str, level: int) -> None:
    assert builtin().sector(f" {form.upper()}\n", name, level) == builtin().sector(form, name, level)
    assert builtin().map_row(form.title()) == {**builtin().map_row(form), "word": form.title()}


@given(st.text())
def test_any_text_can_be_looked_up(word: str) -> None:
    row = builtin().map_row(word)
    assert row["word"] == word
    assert len(row) == 13


# --- the built-in wheels: sense

SENSE = """
happy        joy          enjoyment     joy      pleasure    | lively positive
excited      anticipation enjoyment     joy      excitement  | lively positive
amused       joy          enjoyment     joy      excitement  | lively positive
affectionate trust        enjoyment     love     pleasure    | caring
tender       trust        enjoyment     love     pleasure    | caring
content      joy          enjoyment     joy      contentment | quiet positive
calm         joy          enjoyment     joy      contentment | quiet positive
proud        joy          enjoyment     joy      pleasure    | positive thoughts
relieved     joy          enjoyment     joy      contentment | quiet positive
grateful     trust        enjoyment     love     pleasure    | caring
hopeful      anticipation -             joy      pleasure    | positive thoughts
angry        anger        anger         anger    arousal     | forceful negative
irritated    anger        anger         anger    distress    | forceful negative
annoyed      anger        anger         anger    distress    | forceful negative
frustrated   anger        anger         anger    distress    | negative thoughts
contemptuous disgust      contempt      anger    distress    | forceful negative
bitter       anger        anger         anger    distress    | forceful negative
resentful    anger        anger         anger    distress    | forceful negative
sarcastic    disgust      contempt      anger    distress    | forceful negative
jealous      anger        -             anger    distress    | negative thoughts
disgusted    disgust      disgust       anger    distress    | forceful negative
sad          sadness      sadness       sadness  depression  | passive negative
grieving     sadness      sadness       sadness  misery      | passive negative
lonely       sadness      sadness       sadness  depression  | passive negative
disappointed sadness      sadness       sadness  depression  | passive negative
despairing   sadness      sadness       sadness  depression  | passive negative
hurt         sadness      sadness       sadness  misery      | passive negative
nostalgic    sadness      -             love     depression  | -
longing      sadness      -             love     depression  | -
afraid       fear         fear          fear     distress    | helpless negative
anxious      fear         fear          fear     arousal     | helpless negative
worried      fear         fear          fear     distress    | helpless negative
nervous      fear         fear          fear     arousal     | helpless negative
panicked     fear         fear          fear     arousal     | helpless negative
embarrassed  fear         self-reproach sadness  distress    | helpless negative
ashamed      fear         self-reproach sadness  misery      | negative thoughts
guilty       fear         self-reproach sadness  distress    | negative thoughts
regretful    sadness      self-reproach sadness  depression  | negative thoughts
surprised    surprise     surprise      surprise arousal     | reactive
astonished   surprise     surprise      surprise arousal     | reactive
confused     surprise     -             -        distress    | negative thoughts
doubtful     fear         -             fear     distress    | negative thoughts
suspicious   disgust      -             fear     arousal     | negative thoughts
curious      anticipation -             -        arousal     | reactive
interested   anticipation -             -        arousal     | reactive
bored        disgust      -             -        depression  | passive negative
tired        sadness      -             -        sleepiness  | -
indifferent  disgust      -             -        sleepiness  | passive negative
determined   anticipation -             joy      arousal     | positive thoughts
confident    trust        enjoyment     joy      pleasure    | positive thoughts
sympathetic  sadness      enjoyment     sadness  depression  | caring
neutral      -            -             -        -           | -
"""


@pytest.mark.parametrize("line", SENSE.strip().splitlines(), ids=lambda line: line.split()[0])
def test_common_words_land_where_they_should(line: str) -> None:
    first, earl = line.split("|")
    word, *expected = [*first.split(), earl.strip()]
    found = [builtin().sector(word, name) or "-" for name in NAMES]
    assert found == expected


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["happy", "Happily", "happiness", "cheerful", "good mood"], "happiness"),
        (["annoyed", "annoyance", "peeved", "fed up"], "annoyance"),
        (["scared", "fear", "frightened", "fearful"], "fear"),
    ],
)
def test_synonyms_and_inflections_share_a_label(words: list[str], label: str) -> None:
    assert {builtin().label(word) for word in words} == {label}


def test_a_label_that_a_wheel_sets_apart_keeps_its_place_there_and_follows_its_family_elsewhere() -> None:
    # Shaver et al. list torment under anger; every other wheel takes it with misery.
    assert [builtin().sector("tormented", name) for name in ("shaver", "russell")] == ["anger", "misery"]
    assert [builtin().sector("wretched", name) for name in ("shaver", "russell")] == ["sadness", "misery"]
    assert builtin().sector("glad", "russell", 2) == "glad"
    assert builtin().sector("glad", "earl", 2) == "happiness"


def test_inflections_share_their_base() -> None:
    assert {builtin().base(word) for word in ("joy", "joyful", "joyously")} == {"joy"}
    assert builtin().base("qwerty") is None
    assert builtin().label("qwerty") is None


# --- the classes


def small(**changes: Any) -> Taxonomy:
    wheel = EmotionWheel("w", "test", {"a": "A", "b": "B"}, {"a": "A2", "b": "B2"})
    fields: dict[str, Any] = {"wheels": (wheel,), "forms": {"x": ("q", "p")}, "synonyms": {"p": ("a",), "q": ("b",)}}
    return Taxonomy(**{**fields, **changes})


def test_the_first_listed_candidate_wins_unless_the_rule_is_alphabetical() -> None:
    assert small().sector("x", 0) == "B"
    assert small(alphabetical=True).sector("x", 0) == "A"
    assert small(synonyms={"p": ("a",), "q": ("no label",)}).sector("x", 0) == "A"
    assert small(synonyms={}).sector("x", 0) is None


def test_a_wheel_is_named_by_place_name_or_itself() -> None:
    wheels = small()
    assert wheels.sector("x", 0) == wheels.sector("x", "w") == wheels.sector("x", wheels.wheels[0]) == "B"
    for unknown in (1, -1, "v"):
        with pytest.raises(UserError, match="expected one of 0 = w"):
            wheels.sector("x", unknown)
    with pytest.raises(UserError, match="level"):
        wheels.sector("x", 0, level=3)
    with pytest.raises(UserError, match="only A, B"):
        wheels.forms_of(0, "C")


def test_a_taxonomy_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(builtin()))
    assert [copy.map_row(word) for word in FORMS[::50]] == [builtin().map_row(word) for word in FORMS[::50]]


def tables(**family: Any) -> dict[str, Any]:
    wheel = {"name": "w", "source": "s", "sectors": {"A": {"a": ["aa"]}, "B": {"b": []}}}
    words = {"one": ["ones"], "two": []}
    return {"wheels": [wheel], "families": {"f": {"places": ["a"], "words": words, **family}}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (tables(places=["aa"]), "no level-2 sector"),
        (tables(words={"one": ["two"], "two": []}), "'two' is listed under 'one' and under 'two'"),
        ({**tables(), "families": {"aa": {"places": ["b"], "words": {}}}}, "has 'aa' under 'a', not under 'b'"),
    ],
)
def test_contradictions_in_the_tables_are_errors(changed: dict[str, Any], message: str) -> None:
    assert taxonomy.from_tables(tables()).sector("ones", "w", 2) == "a"
    with pytest.raises(UserError, match=message):
        taxonomy.from_tables(changed)


def test_scoring_needs_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; import mer_r1.rl.rewards, mer_r1.emotions.metrics; mer_r1.emotions.wheels.builtin(); "
        "print(sorted({'torch', 'transformers', 'pandas', 'openpyxl', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
