"""What the site needs beyond the pages below docs: the front page, and files of the repository that pages link to.

The front page is README.md. A link that leaves docs (to a recipe, to the licence) leads to a copy below `repository/`,
so that a strict build checks it. Links to folders, for which a site has no page, become plain text.
"""

import re
from pathlib import Path
from posixpath import relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
OUTSIDE = "repository"

LINK = re.compile(r"(?P<text>\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\])\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
SOURCE = re.compile(r"(?P<before>\b(?:src|srcset|href)=\")(?P<target>[^\"#:]+)(?P<after>[#\"])")


def source_of(uri: str) -> Path:
    """The file of the repository that a page of the site is made from."""
    if uri == "index.md":
        return ROOT / "README.md"
    return ROOT / uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else DOCS / uri


def uri_of(path: Path) -> str | None:
    """Where a file of the repository is on the site; None for a folder or a missing file."""
    if path.is_dir() and (path / "README.md").is_file():
        path /= "README.md"
    if not path.is_file():
        return None
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return "index.md" if path == ROOT / "README.md" else f"{OUTSIDE}/{path.relative_to(ROOT).as_posix()}"


def rewritten(markdown: str, page: str) -> str:
    """A page's text with its links as the site has them."""
    here = source_of(page).parent

    def moved(target: str) -> str | None:
        uri = uri_of((here / target).resolve())
        return uri and relpath(uri, str(Path(page).parent.as_posix()))

    def link(match: re.Match[str]) -> str:
        text = LINK.sub(link, match["text"])
        if (here / match["target"]).is_dir() and moved(match["target"]) is None:
            return text[1:-1]
        return f"{text}({moved(match['target']) or match['target']}{match['anchor'] or ''})"

    def attribute(match: re.Match[str]) -> str:
        return f"{match['before']}{moved(match['target']) or match['target']}{match['after']}"

    return SOURCE.sub(attribute, LINK.sub(link, markdown))


def linked(path: Path) -> set[Path]:
    """Files of the repository outside docs that a document links to, and what those link to."""
    found, waiting = set(), [path]
    while waiting:
        document = waiting.pop()
        targets = {
            (document.parent / match["target"]).resolve()
            for match in LINK.finditer(document.read_text(encoding="utf-8"))
        }
        new = {target for target in targets - found if (uri_of(target) or "").startswith(OUTSIDE)}
        found |= new
        waiting += [target for target in new if target.suffix == ".md"]
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the front page, and what the pages link to outside docs."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    for path in sorted(set().union(*(linked(page) for page in [ROOT / "README.md", *DOCS.rglob("*.md")]))):
        files.append(File.generated(config, str(uri_of(path)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let a page's links lead where the site has their targets."""
    return rewritten(markdown, page.file.src_uri)
