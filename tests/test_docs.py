"""The site builds without a warning, and what it is made of says what the source says."""

import ast
import functools
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmseg_unet_lyft.__main__ import find_tools
from mmseg_unet_lyft.datasets.labels import get_scheme
from mmseg_unet_lyft.engine.config import load_config, parse_options
from mmseg_unet_lyft.errors import InputError

from .test_knobs import DERIVED

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'mmseg_unet_lyft'


@pytest.fixture(autouse=True)
def _hooks(monkeypatch):
    """The site's modules as MkDocs imports them: from their own folder."""
    monkeypatch.syspath_prepend(str(ROOT / 'docs/hooks'))


@pytest.fixture(scope='module')
def messages():
    """All messages of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'docs/hooks'))
        from messages import collect

        return collect(PACKAGE)


def rows_of(page: str) -> dict[str, list[list[str]]]:
    """Cells of each table row that begins with a name in code, by that name."""
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip(' `') for cell in line.strip('|').split(' | ')]
        if re.match(r'\| `\w+` \|', line):
            rows.setdefault(cells[0], []).append(cells)
    return rows


def test_every_knob_is_explained_and_none_is_without_a_meaning():
    from knobs import knobs_page

    rows = rows_of(knobs_page(ROOT / 'configs'))
    # A key of mmengine's, which stands among what every run shares.
    assert set(DERIVED) - {'vis_backends'} <= set(rows)
    assert [cells for found in rows.values() for cells in found if not cells[2]] == []


def test_a_knobs_row_has_its_value_its_comment_and_where_it_goes(tmp_path):
    from knobs import read_source

    path = tmp_path / 'config.py'
    path.write_text(
        '# A title.\n'
        "_base_ = ['base.py']\n\n"
        'width = 16  # of the finest level\n'
        '# One a class,\n# or None.\n'
        'weight = None\n\n'
        'shared = dict(width=width)\n'
        'model = dict(backbone=dict(**shared), heads=[dict(weight=weight, twice=2 * width)])\n'
    )
    source = read_source(path)
    assert (source.title, source.bases) == ('A title.', ('base.py',))
    width, weight = source.knobs
    assert (width.name, width.value, width.meaning) == ('width', '16', 'of the finest level')
    assert width.reaches == ('model.backbone.width', 'model.heads.0.twice')
    assert (weight.meaning, weight.reaches) == ('One a class, or None.', ('model.heads.0.weight',))


@pytest.mark.parametrize(
    ('provoke', 'module'),
    [
        (lambda: get_scheme('carla14'), 'datasets/labels.py'),
        (lambda: parse_options(['max_iters']), 'engine/config.py'),
        (lambda: load_config('no_such.py'), 'engine/config.py'),
    ],
)
def test_a_message_that_was_met_is_among_those_listed(provoke, module, messages):
    from messages import GAP

    with pytest.raises(InputError, match=r'\w') as caught:
        provoke()
    patterns = [
        '.*'.join(map(re.escape, message.text.split(GAP))) for message in messages if message.module == module
    ]
    assert any(re.fullmatch(pattern, str(caught.value), re.DOTALL) for pattern in patterns)


def test_all_words_of_all_errors_in_the_source_are_listed(messages):
    listed = {}
    for message in messages:
        listed.setdefault(message.module, []).append(message.text)
    missing = []
    for path in sorted(PACKAGE.rglob('*.py')):
        module = path.relative_to(PACKAGE).as_posix()
        for call in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == 'InputError':
                words = [part.value for part in direct_parts(call.args[0]) if len(part.value) > 3]
                found = '\n'.join(listed.get(module, ()))
                missing += [(module, call.lineno, word) for word in words if word not in found]
    assert missing == []


def direct_parts(value: ast.expr) -> list[ast.Constant]:
    """The strings that a message is written with, outside of its placeholders."""
    parts = value.values if isinstance(value, ast.JoinedStr) else [value]
    return [part for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


# Of other packages, or words of our tables.
NOT_OURS = {
    'MMCV==2.2.0 is used but incompatible',
    "No module named 'mmcv._ext'",
    "No module named 'mmcv.ops'",
    "No module named 'pkg_resources'",
    'libGL.so.1: cannot open shared object file',
    'LyftUNet is not in the mmseg::model registry',
    'Weights only load failed',
    'Address already in use',
    'nan',
    'n/a',
}


def test_messages_with_a_remedy_of_their_own_are_the_sources(messages):
    page = (ROOT / 'docs/troubleshooting.md').read_text(encoding='utf-8').partition('## Every message')[0]
    seen = [line.split(' | ')[0] for line in page.splitlines() if line.startswith('| ')]
    quoted = {words for cell in seen for words in re.findall(r'`([^`]+)`', cell)}
    assert quoted > NOT_OURS
    texts = [message.text for message in messages]
    for words in quoted - NOT_OURS:
        pattern = '.*'.join(map(re.escape, words.split(' ... ')))
        assert any(re.search(pattern, text) for text in texts), words


def test_a_message_is_put_together_from_its_parts(tmp_path):
    from messages import collect

    (tmp_path / 'room.py').write_text(
        "REMEDY = 'take another'\n"
        'def read(path, size):\n'
        '    """Read it."""\n'
        "    more = f', more than {1}' if size else ''\n"
        "    raise InputError(f'{path}: has {size} bytes' + more + f'; {REMEDY}')\n"
        'def size_problems(config):\n'
        "    yield f'{config}: too large'\n"
    )
    read, problems = collect(tmp_path)
    assert (read.text, read.about) == ('…: has … bytes, more than …; take another', 'Read it.')
    assert (problems.text, problems.function) == ('…: too large', 'size_problems')


def test_the_page_of_commands_has_each_ones_help():
    from commands import commands_page

    page = commands_page()
    for name, line in find_tools().items():
        assert f'\n## {name}\n\n```text\nusage: mmseg_unet_lyft {name} ' in page
        assert line in ' '.join(page.split())


@pytest.mark.slow
def test_links_of_the_readme_lead_to_pages_and_pictures():
    from pages import home_page

    page = home_page()
    # The site is of docs/ alone.
    assert 'the notebook (`notebooks/lyft_unet_kaggle.ipynb`) goes' in page
    assert '](docs/' not in page
    local = re.findall(r'\]\(([\w./]+)\)', page)
    assert len(local) > 5
    assert [link for link in local if not (ROOT / 'docs' / link).is_file()] == []


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
    assert 'label scheme … is not known' in texts['troubleshooting.html']
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


@pytest.mark.slow
@pytest.mark.browser
def test_a_message_is_found_by_the_sites_search(site, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    handler = functools.partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            browser.set_window_size(1400, 900)
            browser.get(f'http://127.0.0.1:{server.server_port}/index.html?q=its+base+does+not+exist')
            results = WebDriverWait(browser, 30).until(
                lambda driver: driver.find_elements(By.CSS_SELECTOR, 'a.md-search-result__link')
            )
            assert any('troubleshooting.html' in link.get_attribute('href') for link in results)
        finally:
            server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder, and says nothing."""

    def log_message(self, *args):
        pass
