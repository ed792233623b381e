"""In a browser a page of runs loads whole, raises no error, and fits any window, dark and light."""

import pytest

from mmseg_unet_lyft.report.comparison import write_comparison
from mmseg_unet_lyft.report.run_data import read_run
from mmseg_unet_lyft.report.run_page import write_report

from .test_run_page import HOSTILE, write_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]
_MEASURE = """return [
    document.documentElement.scrollWidth - document.documentElement.clientWidth,
    [...document.images].filter(image => !(image.complete && image.naturalWidth)).length,
    document.images.length,
    getComputedStyle(document.body).backgroundColor,
    document.body.innerText]"""


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """A run's page and that of two runs, each with file names that would be elements."""
    folder = tmp_path_factory.mktemp('runs')
    runs = [write_run(folder / name, HOSTILE + 80 * 'x', seed=seed) for seed, name in enumerate('ab')]
    write_comparison([read_run(run) for run in runs], folder / 'comparison.html')
    return dict(run=write_report(runs[0]), comparison=folder / 'comparison.html')


@pytest.mark.parametrize('page', ['run', 'comparison'])
@pytest.mark.parametrize('width', [400, 1400])
@pytest.mark.parametrize(
    ('scheme', 'background'), [('light', 'rgb(255, 255, 255)'), ('dark', 'rgb(20, 23, 27)')]
)
def test_a_page_fits_shows_all_and_raises_nothing(browser, pages, page, width, scheme, background):
    features = [dict(name='prefers-color-scheme', value=scheme)]
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=features))
    window = dict(width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', window)
    browser.get_log('browser')
    browser.get(pages[page].as_uri())
    overflow, broken, images, colour, text = browser.execute_script(_MEASURE)
    assert (overflow, broken, images) == (0, 0, 9 if page == 'run' else 2)
    assert colour == background
    assert HOSTILE in text
    assert browser.get_log('browser') == []
