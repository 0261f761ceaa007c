"""What the build adds to the pages: what `tables` fills in, notebooks, equations as MathML, pictures of the results."""

import html
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from tables import filled

ROOT = Path(__file__).parents[1]
RESULTS = "benchmarks/results/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds to the site a page for each notebook, and the pictures of the results, which are not among the pages."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = notebook.src_uri.replace(".ipynb", ".md")
        files.append(File.generated(config, page, content=markdown_of(json.loads(notebook.content_string))))
    for picture in sorted((ROOT / RESULTS).rglob("*.png")):
        files.append(File.generated(config, str(picture.relative_to(ROOT)), abs_src_path=str(picture)))
    return files


def markdown_of(notebook: dict[str, Any]) -> str:
    """Returns the cells of a notebook as the text of a page, without outputs."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    return "\n\n".join(f"```python\n{text}\n```" if kind == "code" else text for kind, text in cells)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fills in the tables and the reference, and corrects the paths of pictures and notebooks.

    From a page's place in the checkout the results are one folder further up than on the site. A notebook is a page.
    """
    markdown = re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", markdown)
    markdown = markdown.replace(f"](../{RESULTS}", f"]({RESULTS}").replace(f"](../../{RESULTS}", f"](../{RESULTS}")
    return filled(markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Sets equations as MathML, which browsers show without a script and without a font from elsewhere."""
    content = re.sub(r'<span class="arithmatex">\\\((.+?)\\\)</span>', lambda m: mathml(m[1], "inline"), content)
    block = r'<div class="arithmatex">\s*\\\[(.+?)\\\]\s*</div>'
    return re.sub(block, lambda m: mathml(m[1], "block"), content, flags=re.DOTALL)


def mathml(tex: str, display: str) -> str:
    """An equation as MathML; fails for a command that is not known, which would be shown as its name."""
    written = convert(html.unescape(tex), display=display)
    if "\\" in written:
        raise ValueError(f"no MathML for {tex}")
    return written
