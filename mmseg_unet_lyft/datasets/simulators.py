"""What the tags of each CARLA release are called, and which of the 13 classes of CARLA 0.8 each becomes."""

from __future__ import annotations

from dataclasses import dataclass

# CARLA 0.8 to 0.9.9 semantic tags, as the red channel of a label PNG holds them; the 13 classes.
# Source: https://carla.readthedocs.io/en/0.8.4/cameras_and_sensors/
CARLA_CLASSES = (
    'None',
    'Buildings',
    'Fences',
    'Other',
    'Pedestrians',
    'Poles',
    'RoadLines',
    'Roads',
    'Sidewalks',
    'Vegetation',
    'Vehicles',
    'Walls',
    'TrafficSigns',
)

# What a newer tag becomes where its name is none of the 13. The rule: the class of the same thing in 0.8, and
# None for what had no tag there (0.8's Tagger.cpp gives None to whatever lies in no folder it knows: the sky,
# the ground beside the road, bridges, tracks, water); its folder Props, now Static and Dynamic, is Other; its
# traffic lights carry the tag of signs, as the Lyft frames show.
_BECOMES = {
    'Sky': 'None',
    'Ground': 'None',
    'Bridge': 'None',
    'RailTrack': 'None',
    'Water': 'None',
    'GuardRail': 'Fences',
    'TrafficLight': 'TrafficSigns',
    'Static': 'Other',
    'Dynamic': 'Other',
    'Terrain': 'Vegetation',
    'Rider': 'Pedestrians',
    'Car': 'Vehicles',
    'Truck': 'Vehicles',
    'Bus': 'Vehicles',
    'Train': 'Vehicles',
    'Motorcycle': 'Vehicles',
    'Bicycle': 'Vehicles',
}


@dataclass(frozen=True)
class Simulator:
    """The tags of a range of CARLA releases.

    Attributes:
        first: The first release with these tags.
        tags: Name of each tag; the position is the value in the label PNG's red channel.
    """

    first: str
    tags: tuple[str, ...]

    @property
    def to_carla13(self) -> tuple[int, ...]:
        """Which of the 13 classes each tag becomes."""
        return tuple(CARLA_CLASSES.index(_BECOMES.get(name, name)) for name in self.tags)

    @property
    def scheme_name(self) -> str:
        """The label scheme that turns these tags into the 13 classes."""
        return 'carla13' if self.tags == CARLA_CLASSES else f'carla13_from_{self.first}'


SIMULATORS = {
    simulator.first: simulator
    for simulator in (
        Simulator('0.8', CARLA_CLASSES),
        # 0.9.10 to 0.9.13. Source: https://carla.readthedocs.io/en/0.9.13/ref_sensors/ (semantic segmentation
        # camera), and the change itself, https://github.com/carla-simulator/carla/pull/3251
        Simulator(
            '0.9.10',
            (
                *CARLA_CLASSES,
                *('Sky Ground Bridge RailTrack GuardRail TrafficLight Static Dynamic Water Terrain').split(),
            ),
        ),
        # 0.9.14 and newer: Cityscapes' train ids plus one, then CARLA's own. Its documentation kept the older
        # table for two releases (carla#6902). Source: LibCarla/source/carla/rpc/ObjectLabel.h,
        # https://carla.org/Doxygen/html/d0/dea/ObjectLabel_8h_source.html
        Simulator(
            '0.9.14',
            tuple(
                'None Roads Sidewalks Buildings Walls Fences Poles TrafficLight TrafficSigns Vegetation '
                'Terrain Sky Pedestrians Rider Car Truck Bus Train Motorcycle Bicycle '
                'Static Dynamic Other Water RoadLines Ground Bridge RailTrack GuardRail'.split()
            ),
        ),
    )
}
