"""What joins GPUs and how long messages take: line rates, and the latencies that NCCL reckons with."""

from __future__ import annotations

from dataclasses import dataclass

_GB, _US = 1e9, 1e-6
_GIGABIT = 1e9 / 8
# PCI Express, each way: 16 or 32 GT/s a lane, 16 lanes, 128 of 130 bits are data.
_PCIE_4 = 16e9 * 16 * 128 / 130 / 8
# Seconds before the first hop, for a ring of large pieces, and for a ring and a tree of small ones.
# Source: NCCL 2.1x, src/graph/tuning.cc, baseLat, at commit 01afd20a77b5804e0ecf1042509dd9d20ebf9e93.
_START = 8.4 * _US
_SMALL_RING_START, _SMALL_TREE_START = 3.6 * _US, 4.4 * _US
# There too: on what a large message's hops take on several nodes, and on a small one's hops inside a node.
_PLATEAU, _SMALL_INSIDE = 1.9, 1.8


@dataclass(frozen=True)
class Link:
    """What joins two GPUs, or two nodes.

    Attributes:
        name: In tables.
        rate: Bytes a second each way; of the line, which no protocol reaches.
        ring_hop: Seconds of a hop of a large message (NCCL's Simple protocol).
        small_ring_hop: Of a small one (LL), around a ring.
        small_tree_hop: Of a small one, up or down a tree.
    """

    name: str
    rate: float
    ring_hop: float
    small_ring_hop: float
    small_tree_hop: float


# Hops: NCCL's hwLat, as above.
_PCI_HOPS = (5.7 * _US, 1.0 * _US, 1.0 * _US)
_NET_HOPS = (9.6 * _US, 2.7 * _US, 5.0 * _US)
INSIDE = (
    Link('PCIe 4.0 x16', _PCIE_4, *_PCI_HOPS),
    Link('PCIe 5.0 x16', 2 * _PCIE_4, *_PCI_HOPS),
    # 900 GB/s, both ways together: https://www.nvidia.com/en-us/data-center/h100/
    Link('NVLink 4', 450 * _GB, 3.4 * _US, 0.47 * _US, 0.52 * _US),
)
BETWEEN = (
    Link('25 Gbit Ethernet', 25 * _GIGABIT, *_NET_HOPS),
    Link('100 Gbit Ethernet', 100 * _GIGABIT, *_NET_HOPS),
    Link('200 Gbit InfiniBand', 200 * _GIGABIT, *_NET_HOPS),
)


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes of equally many.

    Attributes:
        gpus: Of all nodes.
        nodes: Each with one network card.
        inside: Joins the GPUs of a node.
        between: Joins the nodes.
    """

    gpus: int
    nodes: int
    inside: Link
    between: Link

    def all_reduce(self, size: int) -> float:
        """Seconds until a sum of so many bytes is on every GPU, by a ring.

        ``2 (n - 1) / n`` of the bytes pass every link, in ``2 (n - 1)`` hops; the slowest link sets the pace.
        """
        if self.gpus == 1:
            return 0.0
        used = [self.inside] * (self.gpus > self.nodes) + [self.between] * (self.nodes > 1)
        rate = min(link.rate for link in used)
        hops = _START + self._hops(2, self.inside.ring_hop, self.between.ring_hop)
        return 2 * (self.gpus - 1) / self.gpus * size / rate + hops * (_PLATEAU if self.nodes > 1 else 1)

    def _hops(self, rounds: int, inside: float, between: float) -> float:
        """Seconds of so many rounds of a ring."""
        return rounds * ((self.gpus - self.nodes) * inside + (self.nodes - 1) * between)

    def small_gather(self) -> float:
        """Seconds until a few bytes of every GPU are on every other, by a ring."""
        if self.gpus == 1:
            return 0.0
        inside = self.inside.small_ring_hop * (_SMALL_INSIDE if self.nodes > 1 else 1)
        return _SMALL_RING_START + self._hops(1, inside, self.between.small_ring_hop)

    def small_all_reduce(self) -> float:
        """Seconds until the sum of a few bytes is on every GPU: by a tree over nodes that are chains."""
        if self.gpus == 1:
            return 0.0
        inside = self.inside.small_tree_hop * (_SMALL_INSIDE if self.nodes > 1 else 1)
        levels = (self.nodes - 1).bit_length()
        in_node = self.gpus // self.nodes - 1
        return _SMALL_TREE_START + 2 * (in_node * inside + levels * self.between.small_tree_hop)
