"""The site builds without a warning, and what it is made of says what the source says."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmseg_unet_lyft.__main__ import find_tools
from mmseg_unet_lyft.engine.config import SHORT_NAMES

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _hooks(monkeypatch):
    """The site's modules as MkDocs imports them: from their own folder."""
    monkeypatch.syspath_prepend(str(ROOT / 'docs/hooks'))


def rows_of(page: str) -> dict[str, list[list[str]]]:
    """Cells of each table row that begins with a name in code, by that name."""
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip(' `') for cell in line.strip('|').split(' | ')]
        if re.match(r'\| `\w+` \|', line):
            rows.setdefault(cells[0], []).append(cells)
    return rows


def test_every_short_name_is_on_the_page_with_a_value_and_a_meaning():
    from options import options_page

    rows = rows_of(options_page(ROOT / 'configs'))
    assert set(rows) == set(SHORT_NAMES)
    assert [cells for found in rows.values() for cells in found if not cells[1] or not cells[2]] == []
    (row,) = rows['batch_size']
    assert row[1:] == ['4', 'frames a step on each device', 'train_dataloader.batch_size']


def test_the_page_of_commands_has_each_ones_help():
    from commands import commands_page

    page = commands_page()
    for name, line in find_tools().items():
        assert f'\n## {name}\n\n```text\nusage: mmseg_unet_lyft {name} ' in page
        assert line in ' '.join(page.split())


class Links(HTMLParser):
    """What a page loads: addresses of scripts, styles and pictures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        wanted = dict(link='href', script='src', img='src', iframe='src').get(tag)
        address = dict(attrs).get(wanted)
        if address and dict(attrs).get('rel') not in ('canonical', 'next', 'prev'):
            self.loaded.append(address)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The site, built."""
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)]
    environ = os.environ | dict(NO_MKDOCS_2_WARNING='1')
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'WARNING' not in done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(site):
    pages = {path.relative_to(site).as_posix(): path for path in site.rglob('*.html')}
    texts = {name: path.read_text(encoding='utf-8') for name, path in pages.items()}
    assert {'index.html', 'configs.html', 'commands.html', 'troubleshooting.html'} < set(pages)
    for name, path in pages.items():
        for address in Links(texts[name]).loaded:
            assert not re.match(r'(https?:)?//', address), (name, address)
            # 404.html alone is made for a server.
            assert name == '404.html' or (path.parent / address.partition('?')[0]).is_file(), (name, address)
    assert 'mmseg_unet_lyft.inference.segmenter.Segmenter' in texts['api/inference.html']
    assert 'carla13_from_0.9.14' in texts['data.html']
    assert 'made by the build' not in ''.join(texts.values())


@pytest.mark.slow
@pytest.mark.browser
def test_pages_fit_narrow_and_wide_windows_without_an_error(site, browser):
    for width in (400, 1400):
        browser.set_window_size(width, 900)
        for name in ('index', 'configs', 'troubleshooting', 'api/datasets'):
            browser.get((site / f'{name}.html').as_uri())
            assert browser.execute_script('return document.documentElement.scrollWidth <= innerWidth'), name
            assert browser.get_log('browser') == []
