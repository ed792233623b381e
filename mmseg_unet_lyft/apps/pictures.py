"""What the demo shows of a label map: pure functions from arrays to pictures and a table."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import cv2
import numpy as np

from ..report.figures import overlay

MOST_SHOWN_PIXELS = 2_000_000  # A page shows no more, and each move of a slider sends them again.

_TABLE = """
<div class="shares">
{% for name, rows in models %}
<table>
<caption>{{ name }}</caption>
{% for row in rows %}
<tr><td><span class="swatch" style="background: rgb({{ row.colour }})"></span>{{ row.name }}</td>
<td class="bar"><span style="width: {{ row.percent }}%; background: rgb({{ row.colour }})"></span></td>
<td class="number">{{ row.percent }} %</td></tr>
{% endfor %}
</table>
{% endfor %}
</div>
"""


def toggled_overlay(
    image: np.ndarray,
    label: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    shown: Collection[str],
    opacity: float,
) -> np.ndarray:
    """The image under the colours of some classes; pixels of the others stay as they are.

    Args:
        image: RGB, uint8 (H, W, 3).
        label: Class ids, uint8 (H, W).
        classes: Class names by id.
        palette: RGB colour of each class.
        shown: Names of the classes that are painted.
        opacity: Weight of the colours, 0 to 1.

    Returns:
        RGB, uint8 (H, W, 3).
    """
    is_shown = np.zeros(256, dtype=bool)
    is_shown[: len(classes)] = [name in shown for name in classes]
    painted = overlay(image, label, palette, opacity)
    return np.where(np.take(is_shown, label)[..., None], painted, image)


def class_shares(label: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of the pixels that each class has, float64 (C,); sums to 1 where all ids are below C."""
    return np.bincount(label.ravel(), minlength=num_classes)[:num_classes] / label.size


def shares_table(
    models: Sequence[tuple[str, Sequence[str], Sequence[Sequence[int]], np.ndarray]],
) -> str:
    """An HTML table of each model's class shares, largest first; it is the legend of the colours, too.

    Args:
        models: Name, class names, RGB colours and shares of each.
    """
    from jinja2 import Environment

    # Names are from model files, and may hold anything.
    template = Environment(autoescape=True).from_string(_TABLE)
    return template.render(models=[(name, _rows(*rest)) for name, *rest in models])


def _rows(classes: Sequence[str], palette: Sequence[Sequence[int]], shares: np.ndarray) -> list[dict]:
    """A table's rows: the classes that occur."""
    order = [index for index in np.argsort(-shares, kind='stable') if shares[index] > 0]
    return [
        dict(
            name=classes[index],
            colour=', '.join(str(int(level)) for level in palette[index]),
            percent=f'{100 * shares[index]:.1f}',
        )
        for index in order
    ]


def entropy_picture(entropy: np.ndarray, num_classes: int) -> np.ndarray:
    """Entropy as colours from black (certain) over red to light yellow (all classes alike).

    Args:
        entropy: Nats, float (H, W).
        num_classes: Of the model; the logarithm is the largest entropy.

    Returns:
        RGB, uint8 (H, W, 3).
    """
    levels = np.rint(entropy * (255 / np.log(max(num_classes, 2)))).clip(0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def fit(pixels: np.ndarray, is_label: bool = False, most: int = MOST_SHOWN_PIXELS) -> np.ndarray:
    """A picture or a label map made smaller, its ratio kept, until it has no more than ``most`` pixels."""
    height, width = pixels.shape[:2]
    if height * width <= most:
        return pixels
    ratio = (most / (height * width)) ** 0.5
    size = (max(1, int(width * ratio)), max(1, int(height * ratio)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST if is_label else cv2.INTER_AREA)
