"""The report as one HTML page that needs nothing beside it: no network, no script, no other file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dqs_lightning.cli.report.tables import Table

STYLE = """
body { margin: 0 auto; max-width: 62rem; padding: 0 1rem 3rem; color: #1a1a1a; background: #fff;
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 1.5rem 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
figure { margin: 1.25rem 0; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption, .note { color: #444; font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top;
  white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
.right { text-align: right; }
td.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
th.long { white-space: normal; min-width: 8rem; }
ul { padding-left: 1.2rem; }
@media print {
  body { max-width: none; font-size: 10pt; }
  .wide { overflow: visible; }
  table { font-size: 7pt; }
  th, td, td.long, th.long { white-space: normal; min-width: 0; padding: .1rem .3rem; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: its own pictures and style."""


@dataclass(frozen=True)
class Picture:
    """A picture with its file's name, its content and what is to be known of it."""

    name: str
    content: bytes
    title: str
    caption: str

    def html(self) -> str:
        """As a figure that carries the picture itself."""
        data = base64.b64encode(self.content).decode("ascii")
        return (
            f'<figure id="{escape(self.name)}">\n<img alt="{escape(self.title)}" src="data:image/png;base64,{data}">\n'
            f"<figcaption><b>{escape(self.title)}.</b> {escape(self.caption)}</figcaption>\n</figure>"
        )


@dataclass(frozen=True)
class Section:
    """A part of the page, in the order in which it is read."""

    title: str
    parts: Sequence[Picture | Table]


def page(title: str, summary: str, notes: Sequence[str], sections: Sequence[Section], footer: str) -> str:
    """The whole page.

    Args:
        title: of the page.
        summary: a sentence below it.
        notes: what is to be known before reading.
        sections: pictures and tables.
        footer: how the page was made.
    """
    listed = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(summary)}</p>"]
    if notes:
        body.append(f"<h2>To know before reading</h2>\n<ul>\n{listed}</ul>")
    for section in sections:
        body += [f"<h2>{escape(section.title)}</h2>", *(part.html() for part in section.parts)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f'\n<p class="note">{escape(footer)}</p>\n</body>\n</html>\n'
    )
