"""What MkDocs calls when it builds the site: pages from the source, so that none of it drifts."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# The clone need not be installed.
sys.path.insert(0, str(ROOT))
from commands import commands_page
from options import options_page
from tables import TABLES

PACKAGE = ROOT / 'mmseg_unet_lyft'
# Folders whose modules are called from Python; titles as the navigation has them.
FOLDERS = ('inference', 'models', 'datasets', 'evaluation', 'engine', 'report')
_LINK = re.compile(r'\[([^\]]*)\]\(([^)\s]+)\)')
_MARKER = re.compile(r'<!-- made by the build: (\w+) -->')


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from the source."""
    made = {
        'index.md': home_page(),
        'changelog.md': (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8'),
        'configs.md': options_page(ROOT / 'configs'),
        'commands.md': commands_page(),
        **{f'api/{folder}.md': api_page(folder) for folder in FOLDERS},
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables in the place of their markers."""
    return _MARKER.sub(lambda match: TABLES[match[1]](), markdown)


def home_page() -> str:
    """The README, whose links start at the root of the clone."""
    return _LINK.sub(_from_docs, (ROOT / 'README.md').read_text(encoding='utf-8'))


def _from_docs(link: re.Match) -> str:
    """A link as it leads from the site: what is not in docs/ is not part of it, and is only named."""
    text, address = link[1], link[2]
    if '://' in address or address.startswith('#'):
        return link[0]
    inside = address.removeprefix('docs/')
    if inside != address:
        return f'[{text}]({inside})'
    return text if address in text else f'{text} (`{address}`)'


def api_page(folder: str) -> str:
    """Directives for mkdocstrings, one per module."""
    about = {path.stem: path for path in sorted((PACKAGE / folder).glob('[a-z]*.py'))}
    return '\n\n'.join([f'# {folder}', *(f'::: mmseg_unet_lyft.{folder}.{name}' for name in about)]) + '\n'
