"""The objects of the embedded scenes: a pen, texture, clutter, skylines, and one drawing function for each class.

An object's points have y upwards, its foot at (0, 0), its height 1 and its front at +x. Colours are RGB in [0, 1].
A pen draws on a layer; `paste` shades the layer and blends it into the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Colour = Array  # (3, 1, 1) float32
Point = tuple[float, float] | Array
Points = Sequence[Point] | Array

SUBPIXEL_BITS = 4
TILE = 512  # side of the noise tile that textures everything


def rgb(red: float, green: float, blue: float) -> Colour:
    """Make a colour that blends with pictures whose channels come first."""
    return np.array([[[red]], [[green]], [[blue]]], np.float32)


INK = rgb(0.12, 0.12, 0.14)
GLASS = rgb(0.62, 0.78, 0.88)
STEEL = rgb(0.66, 0.66, 0.68)
WOOD = rgb(0.40, 0.27, 0.17)
SMOKE = rgb(0.90, 0.90, 0.90)


@dataclass(frozen=True, eq=False)
class Thing:
    """The labelled object of a scene, at t = 0.5; lengths in the scene's unit."""

    label: int
    ground: float  # y of the ground below it
    altitude: float  # of its foot above the ground
    height: float
    facing: int  # +1: its front is to the right
    main: Colour
    trim: Colour
    traits: Array  # (8,) in [0, 1): shape and pose, as its drawing function reads them
    grain: Array  # (2,) noise-tile texels per own height, across and up


@dataclass(frozen=True)
class Pen:
    """Draws in an object's own coordinates: its height is 1, its foot (0, 0), its front +x, up +y."""

    layer: Array  # (side, side, 4) uint8, RGB premultiplied by opacity
    x: float  # of the foot, in pixels from the layer's left edge
    y: float  # of the foot, in pixels from the layer's top edge
    scale: float  # pixels of the object's height
    facing: int  # -1 mirrors

    def fill(self, points: Points, colour: Colour, opacity: float = 1.0) -> None:
        """Fill a polygon."""
        import cv2

        projected = np.asarray(points, np.float64) * (self.facing * self.scale, -self.scale) + (self.x, self.y)
        fixed = np.round((projected - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)
        rgba = [255 * opacity * min(float(c), 1.0) for c in (*colour.ravel().tolist(), 1.0)]
        cv2.fillPoly(self.layer, [fixed], rgba, cv2.LINE_AA, SUBPIXEL_BITS)

    def box(self, left: float, bottom: float, right: float, top: float, colour: Colour) -> None:
        """Fill a rectangle."""
        self.fill([(left, bottom), (right, bottom), (right, top), (left, top)], colour)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour, opacity: float = 1.0) -> None:
        """Fill an axis-aligned ellipse about (x, y)."""
        self.fill(CIRCLE * (rx, ry) + (x, y), colour, opacity)

    def stroke(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """Draw a straight bar. The lines of cv2 have widths of whole pixels only."""
        a, b = np.array(start), np.array(end)
        along = (b - a) / max(np.hypot(*(b - a)), 1e-9)
        side = width / 2 * np.array([-along[1], along[0]])
        self.fill(np.stack([a + side, b + side, b - side, a - side]), colour)

    def wheel(self, x: float, r: float, t: float, rim: Colour) -> None:
        """Draw a wheel that stands on the ground and rolls forwards."""
        self.disc(x, r, r, r, INK)
        self.disc(x, r, 0.62 * r, 0.62 * r, rim)
        # Slower than it should roll: from one of eight frames to the next, a cross that turns by more than
        # 45 degrees would seem to turn backwards.
        for spoke in 4 * t + np.array([0, np.pi / 2]):
            dx, dy = 0.6 * r * np.cos(spoke), -0.6 * r * np.sin(spoke)
            self.stroke((x - dx, r - dy), (x + dx, r + dy), 0.22 * r, INK)

    def smoke(self, x: float, y: float, drift: float, t: float) -> None:
        """Draw puffs that rise from (x, y), grow, fade and drift."""
        for age in np.sort((np.arange(6) / 6 + 0.5 * t) % 1)[::-1]:
            size = 0.05 + 0.11 * age
            self.disc(x + drift * age, y + 0.6 * age, size, 0.9 * size, SMOKE, 1 - 0.6 * age)


ANGLES = np.arange(28) * np.pi / 14
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)


def cast_shadow(picture: Array, shape: Array, light: int, strength: float, foot: float, ground: float) -> None:
    """Darken the ground where a shape's shadow falls: flipped, flattened and slanted away from the sun.

    Args:
        picture: (3, side, side) float32, changed in place.
        shape: (side, side) uint8, the opacity of what casts the shadow.
        light: +1 if it comes from the left, else -1.
        strength: How dark the shadow is, 0 to 1.
        foot: Row of the shape's foot.
        ground: Row of the ground below it.
    """
    import cv2

    slant = 0.9 * light
    fall = 0.4 * light * (ground - foot)  # the shadow of a flying object is further away
    source = np.array([[1, -slant, slant * ground - fall], [0, -3, foot + 3 * ground]], np.float32)
    shadow = cv2.warpAffine(shape, source, shape.shape, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    picture *= 1 - shadow * np.float32(strength / 255)


def paste(picture: Array, layer: Array, light: int, tint: Colour, texture: Array | float = 0.0) -> None:
    """Blend a pen's layer into the picture, its edges bright towards the light and dark away from it.

    Args:
        picture: (3, side, side) float32, changed in place.
        layer: (side, side, 4) uint8.
        light: +1 if it comes from the left, else -1.
        tint: The light's colour.
        texture: (side, side) float32, by how much each pixel is brighter or darker than its colour.
    """
    import cv2

    reach = max(2, round(0.09 * len(layer)))
    *channels, alpha = cv2.split(layer)
    left, right = (cv2.blur(alpha, (reach, reach), anchor=(x, reach // 2)) for x in (reach - 1, 0))
    shade = 1 + texture + np.float32(0.45 / 255) * light * cv2.subtract(right, left, dtype=cv2.CV_32F)
    bare = 1 - alpha / np.float32(255)
    for plane, channel, share in zip(picture, channels, tint.flat, strict=True):
        plane *= bare
        plane += channel * (shade * (share / 255))


@lru_cache(maxsize=1)
def _tile() -> Array:
    """Return (TILE, TILE, 2): fractal noise that repeats seamlessly, and its slope, each of standard deviation 1."""
    white = np.random.default_rng(0).normal(size=(TILE, TILE))
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.fftfreq(TILE)[None, :])
    noise = np.fft.ifft2(np.fft.fft2(white) / (frequency + 3 / TILE) ** 1.4 * (frequency > 0)).real
    slope = noise - np.roll(noise, 2, axis=1)
    return np.stack([noise / noise.std(), slope / slope.std()], axis=-1).astype(np.float32)


def fractal_noise(u: Array, v: Array) -> tuple[Array, Array]:
    """Sample the noise, and its slope towards +u, at texels (u, v), which broadcast. The noise is periodic."""
    import cv2

    wrapped = (w - TILE * np.floor(w / TILE) for w in (u, v))  # cv2.remap takes 16-bit coordinates only
    columns, rows = (w.astype(np.float32, order="C") for w in np.broadcast_arrays(*wrapped))
    noise, slope = cv2.split(cv2.remap(_tile(), columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))
    return noise, slope


# Clutter is drawn facing the light's direction, so that +x is away from the light.


def draw_bush(pen: Pen, hue: float) -> None:
    """Draw a bush with its shadow; `hue` in [0, 1] goes from green to brown."""
    pen.disc(0.35, 0, 0.6, 0.12, INK, opacity=0.4)
    for x, y, r in ((-0.3, 0.2, 0.3), (0.3, 0.22, 0.32), (0, 0.42, 0.36)):
        pen.disc(x, y, r, r, rgb(0.2 + 0.3 * hue, 0.45, 0.2))


def draw_stone(pen: Pen, hue: float) -> None:
    """Draw a stone with its shadow; `hue` in [0, 1] goes from dark to light."""
    pen.disc(0.35, 0, 0.6, 0.12, INK, opacity=0.4)
    pen.fill([(-0.4, 0), (-0.3, 0.3), (0.05, 0.42), (0.35, 0.25), (0.42, 0)], rgb(0.5, 0.5, 0.48) * (0.8 + 0.5 * hue))


def draw_post(pen: Pen) -> None:
    """Draw a fence post with its shadow."""
    pen.fill([(0, 0), (0.1, 0), (0.7, -0.2), (0.6, -0.2)], INK, opacity=0.4)
    pen.stroke((0, 0), (0, 1), 0.12, WOOD * 1.3)


# Skylines: heights in [0, 1] over x, from the scene's traits.


def _wave(x: Array, frequency: float, phase: float) -> Array:
    return np.sin(2 * np.pi * (frequency * x + phase))


def _hills(x: Array, traits: Array) -> Array:
    return 0.55 + 0.28 * _wave(x, 1.1, traits[0]) + 0.17 * _wave(x, 2.7, traits[1])


def _mountains(x: Array, traits: Array) -> Array:
    waves = zip((1.3, 3.1, 7.3), (0.6, 0.28, 0.12), traits, strict=False)
    return sum((share * np.abs(2 * ((f * x + phase) % 1) - 1) for f, share, phase in waves), np.zeros_like(x))


def _forest(x: Array, traits: Array) -> Array:
    crowns = np.abs(_wave(x, 8, traits[2])) + np.abs(_wave(x, 13, traits[3]))
    return 0.3 + 0.3 * _hills(x, traits) + 0.13 * crowns


def _city(x: Array, traits: Array) -> Array:
    block = np.floor(15 * x.astype(np.float64) + 15 * traits[0])
    return 0.15 + 0.85 * ((np.sin(block * 12.9898 + traits[1]) * 43758.5453) % 1) ** 1.5


def _plain(x: Array, traits: Array) -> Array:
    return np.zeros_like(x) + 0.04 * traits[0]


RIDGES = (_hills, _mountains, _forest, _city, _plain)


# The classes: one function each, of a pen, the object's looks, the wind (along the pen's x, in the object's own
# heights per clip; some classes ignore it) and the time.


def _car(pen: Pen, thing: Thing, wind: float, t: float) -> None:
    back = -0.45 - 0.7 * thing.traits[0]  # from saloon to van
    roof = [(0.75, 0.58), (0.3, 1.0), (back, 1.0), (max(back - 0.35, -1.2), 0.58)]
    pen.fill(roof, thing.main)
    glass = [(0.62, 0.6), (0.26, 0.92), (back + 0.06, 0.92), (max(back - 0.2, -1.1), 0.6)]
    pen.fill(glass, GLASS)
    pen.stroke((-0.15, 0.55), (-0.15, 0.95), 0.1, thing.main)
    pen.fill([(-1.22, 0.2), (1.22, 0.2), (1.25, 0.45), (1.1, 0.6), (0.7, 0.66), (-1.2, 0.66)], thing.main)
    pen.stroke((-1.2, 0.27), (1.22, 0.27), 0.12, thing.trim)
    pen.disc(1.13, 0.47, 0.09, 0.08, rgb(1, 0.95, 0.7))
    pen.disc(-1.15, 0.52, 0.06, 0.08, rgb(0.85, 0.12, 0.1))
    for x in (-0.72, 0.72):
        pen.wheel(x, 0.25, t, STEEL)


def _house(pen: Pen, thing: Thing, wind: float, t: float) -> None:
    long, eaves = 0.35 + 0.4 * thing.traits[0], 0.48 + 0.12 * thing.traits[1]
    pen.smoke(long - 0.34, 1.18, wind, t)
    pen.box(long - 0.4, 0.7, long - 0.28, 1.18, thing.trim * 0.6)
    pen.box(-0.1, 0, long, eaves, thing.main * 0.8)
    pen.fill([(-0.65, 0), (-0.05, 0), (-0.05, eaves), (-0.35, 1), (-0.65, eaves)], thing.main)
    pen.fill([(-0.4, 1.02), (long - 0.2, 1.02), (long + 0.1, eaves - 0.04), (0, eaves - 0.04)], thing.trim)
    pen.stroke((-0.73, eaves - 0.06), (-0.36, 1.02), 0.08, thing.trim * 0.8)
    pen.box(-0.45, 0, -0.25, 0.34, WOOD)
    for x in np.linspace(0.08, long - 0.2, 2):
        pen.box(x, 0.17, x + 0.15, 0.37, GLASS)


CROWN = ((-0.22, 0.58, 0.2), (0.23, 0.55, 0.19), (-0.12, 0.8, 0.19), (0.14, 0.78, 0.21), (0, 0.6, 0.24))


def _tree(pen: Pen, thing: Thing, wind: float, t: float) -> None:
    sway = 0.03 * np.sin(4 * np.pi * t + 6 * thing.traits[0]) + 0.05 * wind
    leaf = 0.45 * thing.main + rgb(0.12, 0.28, 0.06)
    pen.fill([(-0.08, 0), (0.08, 0), (0.04 + sway, 0.6), (-0.04 + sway, 0.6)], WOOD)
    if thing.traits[1] < 0.4:  # a fir
        for low, high, half in ((0.15, 0.6, 0.34), (0.4, 0.82, 0.26), (0.64, 1.05, 0.18)):
            shadow = 0.8 + 0.25 * low
            pen.fill([(sway * low - half, low), (sway * low + half, low), (sway * high, high)], leaf * shadow)
    else:
        for x, y, r in CROWN:
            r *= 0.9 + 0.3 * thing.traits[2]
            pen.disc(x + sway * y, y, r, r, leaf * (0.75 + 0.4 * y))
    for start in thing.traits[3:]:  # falling leaves
        age = (start + t) % 1
        pen.disc((start - 0.5) * 0.5 + wind * age, 0.7 * (1 - age), 0.025, 0.018, leaf * 1.2)


def _plane(pen: Pen, thing: Thing, wind: float, t: float) -> None:
    pen.fill([(-1.05, 0.5), (-0.75, 0.5), (-1.15, 1), (-1.4, 1)], thing.trim)
    pen.disc(0, 0.42, 1.3, 0.22, thing.main)
    pen.fill([(-1.4, 0.6), (-0.5, 0.6), (-0.5, 0.3)], thing.main)
    pen.fill([(1.05, 0.53), (0.8, 0.6), (0.72, 0.5)], INK)
    for x in np.linspace(-0.55, 0.6, 6):
        pen.disc(x, 0.5, 0.05, 0.06, GLASS * 0.5)
    pen.fill([(0.4, 0.4), (-0.05, 0.4), (-0.75, -0.1), (-0.45, -0.1)], thing.trim)
    pen.fill([(-0.9, 0.48), (-1.1, 0.48), (-1.5, 0.3), (-1.3, 0.3)], thing.trim * 0.8)


def _balloon(pen: Pen, thing: Thing, wind: float, t: float) -> None:
    for x in (-0.09, 0.09):
        pen.stroke((x, 0.12), (2 * x, 0.35), 0.015, INK)
    for share, colour in ((1, thing.main), (0.68, thing.trim), (0.34, thing.main)):
        half = np.array([0.36 * share, 1])
        pen.fill(np.array([(-0.25, 0.22), (0.25, 0.22), (0.93, 0.52), (-0.93, 0.52)]) * half, colour)
        pen.disc(0, 0.64, half[0], 0.36, colour)
    pen.fill([(-0.09, 0), (0.09, 0), (0.11, 0.13), (-0.11, 0.13)], WOOD)


MUZZLE = np.array([(0.5, 1), (0.64, 0.98), (0.88, 0.76), (0.8, 0.7), (0.55, 0.82)])


def _horse(pen: Pen, thing: Thing, wind: float, t: float) -> None:
    stride = 6 * np.pi * t + 6 * thing.traits[0]
    bow = np.array([0, 0.45 if thing.traits[1] < 0.3 else 0.0])  # lowers the head of one that grazes
    for x, phase, shade in ((-0.3, 0, 0.7), (0.3, 2.2, 0.7), (-0.36, 3.1, 1), (0.36, 5.3, 1)):
        foot = x + 0.16 * np.sin(stride + phase)
        knee = (0.5 * (x + foot) + 0.05, 0.27)
        pen.stroke((x, 0.55), knee, 0.13, thing.main * shade)
        pen.stroke(knee, (foot, 0.03), 0.08, thing.main * shade)
    pen.fill([(-0.42, 0.72), (-0.56, 0.66), (-0.62, 0.3), (-0.52, 0.4)], thing.trim * 0.7)
    pen.disc(0, 0.62, 0.48, 0.19, thing.main)
    pen.fill([(0.15, 0.74), (0.45, 0.55), (0.66, 0.88) - bow, (0.5, 0.98) - bow], thing.main)
    pen.fill(MUZZLE - bow, thing.main)
    pen.fill([(0.1, 0.78), (0.2, 0.72), (0.54, 0.92) - bow, (0.5, 1.05) - bow], thing.trim * 0.7)
    for x, y in zip(thing.traits[2:5] * 0.7 - 0.35, (0.56, 0.62, 0.68), strict=True):
        pen.disc(x, y, 0.08, 0.06, thing.trim)


def _windmill(pen: Pen, thing: Thing, wind: float, t: float) -> None:
    base = 0.2 + 0.08 * thing.traits[0]
    pen.fill([(-base, 0), (base, 0), (0.12, 0.66), (-0.12, 0.66)], thing.main)
    pen.disc(0, 0.66, 0.15, 0.12, thing.trim * 0.6)
    pen.fill([(-0.06, 0), (0.06, 0), (0.05, 0.16), (-0.05, 0.16)], INK)
    pen.box(-0.04, 0.34, 0.04, 0.43, GLASS * 0.6)
    # Clockwise to the viewer, whichever way the mill is mirrored.
    hub = np.array([0, 0.68])
    for angle in 2 * np.pi * thing.traits[1] + 2.2 * pen.facing * t + np.arange(4) * np.pi / 2:
        along, aside = np.array([[np.sin(angle), np.cos(angle)], [np.cos(angle), -np.sin(angle)]])
        root, tip, sail = hub + 0.12 * along, hub + 0.52 * along, 0.11 * pen.facing * aside
        pen.fill([root, tip, tip + sail, root + sail], thing.trim)
        pen.stroke(hub, tip, 0.035, WOOD)
    pen.disc(0, 0.68, 0.04, 0.04, INK)


def _train(pen: Pen, thing: Thing, wind: float, t: float) -> None:
    pen.smoke(0.85, 1.05, 0.4 * wind - 0.9, t)
    pen.box(-9, -0.02, 9, 0.05, INK)
    for x in (-2.0, -0.95):  # carriages
        pen.box(x - 0.48, 0.15, x + 0.48, 0.8, thing.trim)
        pen.stroke((x - 0.52, 0.82), (x + 0.52, 0.82), 0.08, INK)
        for window in x + np.array([-0.36, -0.09, 0.18]):
            pen.box(window, 0.45, window + 0.18, 0.68, GLASS)
    pen.box(-0.4, 0.15, 0.1, 0.92, thing.main)
    pen.box(-0.28, 0.55, 0, 0.8, GLASS)
    pen.stroke((-0.46, 0.94), (0.16, 0.94), 0.08, INK)
    pen.box(0, 0.25, 1.05, 0.66, thing.main)
    pen.stroke((0.5, 0.25), (0.5, 0.66), 0.06, thing.trim)
    pen.fill([(0.78, 0.64), (0.92, 0.64), (0.97, 1.05), (0.73, 1.05)], INK)
    pen.fill([(1.0, 0.05), (1.3, 0.05), (1.05, 0.3)], STEEL)
    for x in (-2.3, -1.7, -1.25, -0.65, -0.2, 0.25, 0.7):
        pen.wheel(x, 0.15, t, thing.trim)


@dataclass(frozen=True)
class Kind:
    """Appearance and motion of a class; lengths in the scene's unit; motion over the whole clip, in picture sides."""

    draw: Callable[[Pen, Thing, float, float], None]
    height: float
    reach: float  # half its width, in own heights
    grain: tuple[float, float]  # noise-tile texels per own height, across and up: planks, foliage or metal
    roughness: float  # standard deviation of the grain's brightness
    speed: float = 0.0  # forwards
    rise: float = 0.0
    altitude: float = 0.0  # of its foot above the ground


KINDS = {
    "car": Kind(_car, height=0.24, reach=1.2, grain=(10, 10), roughness=0.06, speed=0.5),
    "house": Kind(_house, height=0.40, reach=0.75, grain=(14, 90), roughness=0.2),
    "tree": Kind(_tree, height=0.52, reach=0.5, grain=(60, 60), roughness=0.32),
    "plane": Kind(_plane, height=0.19, reach=1.4, grain=(8, 16), roughness=0.06, speed=0.5, rise=0.08, altitude=0.46),
    "balloon": Kind(_balloon, height=0.48, reach=0.4, grain=(60, 8), roughness=0.16, rise=0.25, altitude=0.22),
    "horse": Kind(_horse, height=0.34, reach=0.8, grain=(26, 26), roughness=0.16, speed=0.35),
    "windmill": Kind(_windmill, height=0.50, reach=0.6, grain=(90, 60), roughness=0.2),
    "train": Kind(_train, height=0.23, reach=1.6, grain=(90, 14), roughness=0.14, speed=0.4),
}
CLASSES: tuple[str, ...] = tuple(KINDS)


def sample_thing(rng: np.random.Generator, label: int) -> Thing:
    """Draw an object of a class at random."""
    kind = KINDS[CLASSES[label]]
    return Thing(
        label=label,
        ground=0.08 * 8 ** rng.random(),
        altitude=kind.altitude * rng.uniform(0.3, 1.3),
        height=kind.height * rng.uniform(0.75, 1.25),
        facing=int(rng.choice((-1, 1))),
        main=_paint(rng),
        trim=_paint(rng),
        traits=rng.random(8, np.float32),
        grain=np.array(kind.grain, np.float32) * 2 ** rng.uniform(-0.5, 0.5, 2).astype(np.float32),
    )


def _paint(rng: np.random.Generator) -> Colour:
    """Draw a colour of any hue that is neither black nor so pale that shapes vanish in haze."""
    hue, value, saturation = rng.random(), rng.uniform(0.45, 0.98), rng.uniform(0.2, 0.8)
    wheel = np.clip(np.abs((hue * 6 + rgb(0, 4, 2)) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation * (1 - wheel))
