"""The shape of the code: which module may import which, what stays light, and how big things may get.

`python tests/test_architecture.py` (`make sizes`) prints every module's size.
"""

import ast
import re
import statistics
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "mer_r1"

LEVELS = {
    "errors": 0,
    "emotions": 1,
    "data": 1,
    "model": 2,
    "corpora": 2,
    "rl": 3,
    "training": 4,
    "evaluation": 4,
    "benchmarks": 5,
    "lab": 5,
    "integrations": 6,
    "cli": 6,
}
"""Level of each folder. A file imports from its own folder or from lower levels."""

NO_EMOTIONS = ("data", "rl.advantages", "rl.calibration", "rl.interference", "rl.method")
"""What knows nothing of emotions: any set-valued answer works with it."""

HEAVY_FOLDERS = ("model", "rl", "training", "lab.tiny", "integrations")
"""Folders that need torch; everything else starts without the machinery of training."""
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "librosa", "pandas", "sklearn", "anny")
HEAVY += ("openai",)

FILE_HARD, FILE_SOFT, FUNCTION_HARD, FUNCTION_P90, FUNCTION_MEDIAN = 450, 300, 80, 45, 15
"""Budgets in lines, docstrings included."""

MACHINE_PATH = re.compile(
    r"(?<![\w.:/}\]*-])/(?:home|root|tmp|work|mnt|opt|farm|scratch|private|Users|Volumes)/\w|\b[A-Z]:\\\w"
)
TEXT_SUFFIXES = {
    ".py",
    ".md",
    ".toml",
    ".yaml",
    ".yml",
    ".json",
    ".jsonl",
    ".txt",
    ".cfg",
    ".css",
    ".j2",
    ".html",
    ".sh",
    "",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "mer_r1"


def folder_of(module: str) -> str:
    """The folder below the package that holds a module; of `errors` the module itself."""
    return module.split(".")[0]


def level_of(module: str) -> int:
    """Level of a module's folder; infinite for a module that still lies flat."""
    return LEVELS.get(folder_of(module), 99)


def in_folder(module: str, folder: str) -> bool:
    """Whether a module is that folder or file, or lies in it."""
    return f"{module}.".startswith(f"{folder}.")


@lru_cache
def trees() -> dict[str, ast.Module]:
    found = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
    found.pop("mer_r1")  # the package's own docstring and version
    return found


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """Modules of this package that `module` imports, anywhere in it."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}, line {node.lineno}: relative imports are not used here"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        for name in names:
            inner = name.removeprefix("mer_r1.")
            if inner != name and inner in trees():
                yield inner


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return int(node.end_lineno or node.lineno) - node.lineno + 1


@lru_cache
def project_files() -> tuple[Path, ...]:
    """Files that are or would be committed; without git, every file outside hidden folders."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = [name for name in listed.stdout.decode().split("\0") if name]
    else:
        found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        names = [str(path) for path in found if not any(part.startswith(".") or part == "runs" for part in path.parts)]
    return tuple(ROOT / name for name in names if (ROOT / name).is_file())


# --- imports ----------------------------------------------------------------------------------------------------------


def upward_imports() -> list[str]:
    return sorted(
        {
            f"{module} (level {level_of(module)}) imports {target} (level {level_of(target)})"
            for module, tree in trees().items()
            for target in imported(module, tree)
            if folder_of(target) != folder_of(module) and level_of(target) >= level_of(module)
        }
    )


def test_imports_go_down() -> None:
    assert upward_imports() == []


def test_the_method_and_the_data_know_no_emotions() -> None:
    known = {
        f"{module} imports {target}"
        for module, tree in trees().items()
        if any(in_folder(module, place) for place in NO_EMOTIONS)
        for target in imported(module, tree)
        if in_folder(target, "emotions")
    }
    assert known == set()


def test_no_import_cycles() -> None:
    graph = {module: sorted(set(imported(module, tree)) - {module}) for module, tree in trees().items()}
    # A package's __init__ may hand on its own modules.
    graph = {module: [t for t in targets if not module.startswith(f"{t}.")] for module, targets in graph.items()}
    finished: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import cycle: {' -> '.join((*trail[trail.index(module) :], module))}"
        if module not in finished:
            for target in graph[module]:
                visit(target, (*trail, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


def test_no_star_imports() -> None:
    stars = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in project_files()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert stars == []


def test_words_need_no_third_party_code_to_be_imported() -> None:
    foreign = {
        f"{module}: {name}"
        for module, tree in trees().items()
        if folder_of(module) in ("errors", "emotions")
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name and name.split(".")[0] not in {*sys.stdlib_module_names, "mer_r1"}
    }
    assert foreign == set()


def test_what_map_score_and_check_need_starts_without_the_machinery_of_training() -> None:
    light = [module for module in trees() if not any(in_folder(module, place) for place in HEAVY_FOLDERS)]
    program = f"""
import importlib, sys
for module in {light!r}:
    importlib.import_module("mer_r1." + module)
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    if loaded:
        sys.exit(f"importing mer_r1.{{module}} loads {{', '.join(loaded)}}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# --- paths ------------------------------------------------------------------------------------------------------------


def test_the_pattern_finds_machine_paths_and_nothing_else() -> None:
    there = ["open('/home" + "/me/x')", "cd /tmp" + "/run", 'path = "/Users' + '/me"', "C:" + "\\data"]
    assert all(MACHINE_PATH.search(line) for line in there)
    fine = [
        "https://example.org/home/page",
        "src/tmp/x",
        "$OUT/wo" + "rk/y",
        "#!/usr/bin/env bash",
        "and/or",
        "{root}/tmp/x",
    ]
    assert [line for line in fine if MACHINE_PATH.search(line)] == []


def test_no_absolute_machine_paths() -> None:
    found = []
    for path in project_files():
        if path.suffix not in TEXT_SUFFIXES or path.name == "LICENSE":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


# --- sizes and types --------------------------------------------------------------------------------------------------


def size_table() -> str:
    """One line a module: lines, functions, longest function; then the distribution over all functions."""
    rows = [f"{'module':<24}{'lines':>7}{'functions':>11}{'longest':>9}"]
    for module, count in file_lengths().items():
        lengths = [length(node) for node in functions(trees()[module])]
        rows.append(f"{module:<24}{count:>7}{len(lengths):>11}{max(lengths, default=0):>9}")
    median, p90, longest = function_distribution()
    rows.append(
        f"{len(rows) - 1} modules, {sum(file_lengths().values())} lines; functions: median {median:.0f} (budget "
        f"{FUNCTION_MEDIAN}), 90th percentile {p90:.0f} ({FUNCTION_P90}), longest {longest} ({FUNCTION_HARD})"
    )
    return "\n".join(rows)


@lru_cache
def file_lengths() -> dict[str, int]:
    return {
        module_name(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted(SOURCE.rglob("*.py"))
        if module_name(path) != "mer_r1"
    }


def function_distribution() -> tuple[float, float, int]:
    lengths = [length(node) for tree in trees().values() for node in functions(tree)]
    return statistics.median(lengths), statistics.quantiles(lengths, n=10)[-1], max(lengths)


def test_files_are_within_budget() -> None:
    over = {module: count for module, count in file_lengths().items() if count > FILE_HARD}
    assert over == {}, f"over {FILE_HARD} lines:\n{size_table()}"
    long = {module: count for module, count in file_lengths().items() if count > FILE_SOFT}
    if long:
        shown = ", ".join(f"{module} {count}" for module, count in long.items())
        warnings.warn(f"over the soft budget of {FILE_SOFT} lines: {shown}", stacklevel=1)


def test_functions_are_within_budget() -> None:
    over = [
        f"{module}.{node.name}: {length(node)} lines"
        for module, tree in trees().items()
        for node in functions(tree)
        if length(node) > FUNCTION_HARD
    ]
    assert over == [], f"over {FUNCTION_HARD} lines:\n{size_table()}"
    median, p90, _ = function_distribution()
    assert median <= FUNCTION_MEDIAN, size_table()
    assert p90 <= FUNCTION_P90, size_table()


def test_every_function_is_annotated() -> None:
    bare = []
    for module, tree in trees().items():
        for node in functions(tree):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            missing = [a.arg for a in given if a and a.annotation is None and a.arg not in ("self", "cls")]
            if missing or node.returns is None:
                bare.append(f"{module}.{node.name}, line {node.lineno}: {', '.join(missing) or 'return value'}")
    assert bare == []


def test_every_module_opens_with_its_idea() -> None:
    silent = [module for module, tree in trees().items() if len(ast.get_docstring(tree) or "") < 40]
    assert silent == []


if __name__ == "__main__":
    sys.stdout.write(size_table() + "\n")
