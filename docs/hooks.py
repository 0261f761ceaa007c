"""What the build adds: pictures of benchmarks/results/, which lie beside the pages and not among them."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

RESULTS = "benchmarks/results/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pictures of the results become files of the site."""
    root = Path(config.config_file_path).parent
    for picture in sorted((root / RESULTS).rglob("*.png")):
        files.append(File.generated(config, str(picture.relative_to(root)), abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """From a page's own place in the checkout the results are one folder further up than on the site."""
    return markdown.replace(f"](../{RESULTS}", f"]({RESULTS}").replace(f"](../../{RESULTS}", f"](../{RESULTS}")
