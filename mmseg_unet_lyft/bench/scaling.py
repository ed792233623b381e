"""How a training step grows with the GPUs: predicted for 1 to 64, and tried on two processes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

from prettytable import PrettyTable

from ..engine.config import load_config, parse_options
from ..engine.device import choose_device, device_name
from .links import BETWEEN, INSIDE, Cluster
from .pair import PROCESSES, measure_pair
from .rounds import Show, spread, with_spread
from .step import Profile, Trainee, fill_buckets, measure_profile, predict
from .subject import DEFAULT_CONFIG

GPUS = (1, 2, 4, 8, 16, 32, 64)
GPUS_A_NODE = 8
# Of the two processes: a step so short that messages are a good part of it, with our network and a wider one.
_SHORT = (1, 64, 96)


def measure(
    options: Sequence[str],
    device: str | None,
    batch: tuple[int, int, int],
    steps_ms: Sequence[float],
    bucket_mb: int | None,
    rounds: int,
    show: Show,
) -> dict:
    """A step alone, what follows for many GPUs, and two gloo processes beside what is predicted for them.

    Args:
        options: Of ``--cfg-options``.
        device: Where the step alone is measured, None for the best there is; the processes are on the CPU.
        batch: (frames, height, width) of each GPU's step.
        steps_ms: Milliseconds a step takes alone on other devices, to predict for those too.
        bucket_mb: DistributedDataParallel's ``bucket_cap_mb``; None for its own choice.
        rounds: Turns of each measurement.
        show: Wraps the rounds, given how many there are and what is done.

    Raises:
        InputError: If there is no such device, or the options do not fit the config.
    """
    choose_device(device)
    knobs = parse_options(list(options))
    config = load_config(DEFAULT_CONFIG, knobs)
    where = device_name(device)
    profile = measure_profile(Trainee(config, batch, where), rounds, show)
    wider = dict(knobs, base_channels=2 * config.base_channels)
    cases = [(knobs, batch), (knobs, _SHORT), (wider, _SHORT)]
    pairs = measure_pair(DEFAULT_CONFIG, cases, bucket_mb, rounds, show)
    return dict(
        settings=dict(
            device=where, batch=batch, base_channels=config.base_channels, bucket_mb=bucket_mb, rounds=rounds
        ),
        step_ms={part: 1e3 * getattr(profile, part) for part in ('forward', 'backward', 'update')},
        gradient_bytes=profile.gradient_bytes,
        buckets=fill_buckets(profile.gradients, bucket_mb),
        norms=profile.norms,
        predicted=predict_all(profile, steps_ms, bucket_mb),
        pairs=[
            dict(frames=frames, channels=case.get('base_channels', config.base_channels), **compare(found))
            for (case, frames), found in zip(cases, pairs, strict=True)
        ],
    )


def predict_all(profile: Profile, steps_ms: Sequence[float], bucket_mb: int | None) -> list[dict]:
    """What `predict_cluster` says of every cluster, for the measured step and for those of other lengths."""
    return [
        predict_cluster(profile.lasting(1e-3 * milliseconds), cluster, bucket_mb)
        for milliseconds in (1e3 * profile.seconds, *steps_ms)
        for cluster in clusters()
    ]


def clusters() -> list[Cluster]:
    """All that are predicted for: each link inside one node, and each between nodes of NVLink."""
    found = [Cluster(gpus, 1, link, link) for link in INSIDE for gpus in GPUS if gpus <= GPUS_A_NODE]
    found += [
        Cluster(gpus, gpus // GPUS_A_NODE, INSIDE[-1], link)
        for link in BETWEEN
        for gpus in GPUS
        if gpus > GPUS_A_NODE
    ]
    return found


def predict_cluster(profile: Profile, cluster: Cluster, bucket_mb: int | None = None) -> dict:
    """What a step takes on a cluster, every GPU with a batch of its own.

    Returns:
        ``ms`` of the step with batch norm over all GPUs, as by default there, and ``ms_own_norm`` with every
        GPU's own; ``efficiency`` of both: the share of what as many GPUs would do without messages.
    """
    buckets = fill_buckets(profile.gradients, bucket_mb)
    gathers = profile.norms * cluster.small_gather()
    sums = profile.norms * cluster.small_all_reduce()
    # The loss divides by the pixels of all, see LyftCrossEntropyLoss.
    asked = cluster.small_all_reduce()
    step = partial(predict, profile, buckets, cluster.all_reduce)
    over_all, own = step(before_backward=asked + gathers, in_backward=sums), step(before_backward=asked)
    return dict(
        alone_ms=1e3 * profile.seconds,
        gpus=cluster.gpus,
        link=cluster.between.name if cluster.nodes > 1 else cluster.inside.name,
        all_reduce_ms=1e3 * cluster.all_reduce(profile.gradient_bytes),
        ms=1e3 * over_all,
        ms_own_norm=1e3 * own,
        efficiency=profile.seconds / over_all,
        efficiency_own_norm=profile.seconds / own,
    )


def compare(found: dict) -> dict:
    """A case of `measure_pair`: what was predicted from its parts, and what was measured.

    The prediction takes the medians of the parts: of a step alone, of the messages alone. With as many
    computing threads as cores nothing sends while all compute, so nothing is hidden.

    Returns:
        Milliseconds, and ``measured_of_predicted`` of every turn, as `spread`.
    """
    turns = found['turns']
    alone, message = (statistics.median(turns[name]) for name in ('alone', 'message'))
    sent = [statistics.median(turns[f'bucket {index}']) for index in range(len(found['bucket_bytes']))]
    profile = Profile(**found['parts'], gradients=(), norms=0).lasting(alone)
    seconds = dict(zip(found['bucket_bytes'], sent, strict=True))
    buckets = list(zip(found['bucket_shares'], found['bucket_bytes'], strict=True))
    step = partial(predict, profile, buckets, seconds.__getitem__, before_backward=message)
    predicted, hidden = step(is_hidden=False), step()
    return dict(
        threads=found['threads'],
        bucket_bytes=found['bucket_bytes'],
        ddp_bucket_bytes=found['ddp_bucket_bytes'],
        alone_ms=spread(turns['alone'], 1e3),
        message_ms=spread(turns['message'], 1e3),
        buckets_ms=[1e3 * seconds for seconds in sent],
        predicted_ms=1e3 * predicted,
        predicted_hidden_ms=1e3 * hidden,
        measured_ms=spread(turns['together'], 1e3),
        measured_of_predicted=spread(turn / predicted for turn in turns['together']),
    )


def table(figures: dict) -> str:
    """What `measure` found, in lines."""
    settings, step = figures['settings'], figures['step_ms']
    frames, height, width = settings['batch']
    lines = [
        f'a step of {frames} x {height}x{width}, c={settings["base_channels"]}, on one {settings["device"]}: '
        + ', '.join(f'{part} {milliseconds:.1f} ms' for part, milliseconds in step.items()),
        f'{figures["gradient_bytes"] / 1e6:.2f} MB of gradients: '
        + ', '.join(f'{size / 1e6:.2f} MB after {share:.0%}' for share, size in figures['buckets'])
        + f' of the backward pass; {figures["norms"]} batch norms',
        'predicted, ms a step and efficiency; in brackets with the batch norm of each GPU alone',
        str(_prediction_table(figures['predicted'])),
    ]
    for pair in figures['pairs']:
        frames, height, width = pair['frames']
        lines.append(
            f'{PROCESSES} gloo processes, {frames} x {height}x{width} each, c={pair["channels"]}: '
            f'alone {pair["alone_ms"]["median"]:.1f} ms, predicted {pair["predicted_ms"]:.1f}, measured '
            f'{with_spread(pair["measured_ms"], 1)}: {with_spread(pair["measured_of_predicted"], 3)} times'
        )
    return '\n'.join(lines)


def _prediction_table(predicted: Sequence[dict]) -> PrettyTable:
    """A line a cluster, a column a step."""
    cells: dict[tuple, dict[str, str]] = {}
    for row in predicted:
        cluster = (row['gpus'], row['link'], f'{row["all_reduce_ms"]:.2f}')
        cells.setdefault(cluster, {})[f'{row["alone_ms"]:.1f} ms alone'] = (
            f'{row["ms"]:.2f} ({row["ms_own_norm"]:.2f}), '
            f'{row["efficiency"]:.1%} ({row["efficiency_own_norm"]:.1%})'
        )
    columns = next(iter(cells.values()))
    found = PrettyTable(['GPUs', 'slowest link', 'all-reduce, ms', *columns], align='r')
    found.add_rows([[*cluster, *steps.values()] for cluster, steps in cells.items()])
    return found
