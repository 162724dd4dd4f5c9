"""Labelled landscapes drawn from a seed: the data set that needs no files.

A scene is one *object* (its class is the label) standing in, or flying over, a *landscape* that says nothing
about the class. What makes the pictures fit for jigsaw puzzles is that every part of them has a right place:
the sky brightens towards the horizon and the sun, the ground's texture, road and posts shrink towards a
vanishing point, and one light, which comes from the left in most scenes, models every shape and casts every
shadow. What makes them fit for clips is that time has a direction: vehicles drive forwards, balloons rise,
sails turn clockwise, and smoke and clouds drift with the wind, which mostly blows to the right.

Everything random is drawn once, into a frozen :class:`Scene`; a picture is then a function of the scene, a
size and a time. Lengths are fractions of the picture's side, so a scene looks the same at every size. Points
are (x, y) with y downwards; an object's own points have y upwards, its foot at (0, 0) and its front at +x.
Colours are RGB in [0, 1], and pictures have channels first, which numpy blends fastest, until :func:`_draw`
returns bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Colour = Array  # (3, 1, 1) float32
Point = tuple[float, float] | Array
Points = Sequence[Point] | Array

TILE = 512  # side of the noise tile that textures everything
SUBPIXEL_BITS = 4
NEAR = 0.02  # how far below the true horizon the ground is cut off, to keep depths finite


def _rgb(red: float, green: float, blue: float) -> Colour:
    return np.array([[[red]], [[green]], [[blue]]], np.float32)


INK = _rgb(0.12, 0.12, 0.14)
GLASS = _rgb(0.62, 0.78, 0.88)
STEEL = _rgb(0.66, 0.66, 0.68)
WOOD = _rgb(0.40, 0.27, 0.17)
SMOKE = _rgb(0.90, 0.90, 0.90)

# Zenith, horizon, and what the light does to everything it falls on.
SKIES = (
    ((0.22, 0.47, 0.85), (0.76, 0.88, 0.96), (1.00, 1.00, 0.96)),  # noon
    ((0.42, 0.62, 0.84), (0.97, 0.87, 0.74), (1.00, 0.94, 0.84)),  # morning
    ((0.28, 0.30, 0.56), (0.98, 0.64, 0.40), (0.96, 0.76, 0.60)),  # evening
    ((0.52, 0.56, 0.61), (0.80, 0.82, 0.83), (0.82, 0.84, 0.86)),  # overcast
    ((0.27, 0.32, 0.40), (0.66, 0.68, 0.62), (0.70, 0.73, 0.76)),  # storm
    ((0.11, 0.13, 0.32), (0.62, 0.42, 0.52), (0.66, 0.62, 0.76)),  # dusk
)
GROUNDS = (
    (0.32, 0.50, 0.20),  # grass
    (0.62, 0.60, 0.24),  # hay
    (0.82, 0.70, 0.48),  # sand
    (0.88, 0.90, 0.94),  # snow
    (0.44, 0.32, 0.22),  # soil
    (0.66, 0.38, 0.25),  # red earth
    (0.50, 0.40, 0.52),  # heather
    (0.55, 0.55, 0.54),  # gravel
)


@dataclass(frozen=True, eq=False)
class Thing:
    """The labelled object of a scene, at t = 0.5."""

    label: int
    x: float
    ground: float  # y of the ground below it
    height: float
    facing: int  # +1: its front is to the right
    main: Colour
    trim: Colour
    traits: Array  # (8,) in [0, 1): shape and pose, as its drawing function reads them
    grain: Array  # (2,) noise-tile texels per own height, across and up: blotches, stripes or wood


@dataclass(frozen=True, eq=False)
class Scene:
    """All that was drawn at random for one scene."""

    thing: Thing
    horizon: float
    vanish: float  # x of the vanishing point
    light: int  # +1: from the left
    sun: tuple[float, float]
    wind: float  # drift over the whole clip, in picture sides
    zenith: Colour
    haze: Colour
    tint: Colour
    soil: Colour
    ridge: Colour
    puffs: float  # noise-tile texels per unit of the clouds' ceiling: the higher, the smaller the clouds
    clouds: float  # noise level above which there is cloud
    mist: float  # how far the haze reaches towards the viewer
    ridge_kind: int  # index into RIDGES
    ridge_height: float
    road: tuple[float, float]  # centre and half-width on the ground plane; half-width 0 for none
    furrows: float  # furrows per unit of the ground plane; 0 for none
    shore: float  # how far below the horizon there is water
    clutter: Array  # (n, 5) in [0, 1): bushes and stones
    traits: Array  # (8,) in [0, 1): phases of ridges and textures


def render_stills(count: int, size: int, seed: int = 0) -> tuple[Array, Array]:
    """Draws one picture of each of the first `count` scenes of a seed.

    Scene i depends on `seed` and i alone, so a shorter call returns a prefix of a longer one.

    Args:
        count: Number of scenes, at least 1.
        size: Side of the pictures in pixels, at least 16.
        seed: Non-negative; another seed gives other scenes.

    Returns:
        Pixels, (count, size, size, 3) uint8 RGB, and labels, (count,) int64 indices into `CLASSES`, balanced
        to within one and in shuffled order.

    Raises:
        ValueError: If `count`, `size` or `seed` is too small.
    """
    clips, labels = render_clips(count, 1, size, seed)
    return clips[:, 0], labels


def render_clips(count: int, frames: int, size: int, seed: int = 0) -> tuple[Array, Array]:
    """Draws a short film of each of the first `count` scenes of a seed.

    Args:
        count: Number of scenes, at least 1.
        frames: Pictures per scene, at least 1, evenly spaced over the scene's time from 0 to 1. The middle
            one of an odd number, hence the only one of 1, is the picture that `render_stills` draws.
        size: Side of the pictures in pixels, at least 16.
        seed: Non-negative; another seed gives other scenes.

    Returns:
        Pixels, (count, frames, size, size, 3) uint8 RGB, and labels as `render_stills` returns them.

    Raises:
        ValueError: If `count`, `frames`, `size` or `seed` is too small.
    """
    for name, value, least in (
        ("count", count, 1),
        ("frames", frames, 1),
        ("size", size, 16),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; pass at least {least}")
    times = np.linspace(0, 1, frames) if frames > 1 else (0.5,)
    labels = _labels(count, seed)
    clips = np.empty((count, frames, size, size, 3), np.uint8)
    for i, label in enumerate(labels):
        scene = _sample(np.random.default_rng([seed, 0, i]), int(label))
        for frame, t in zip(clips[i], times, strict=True):
            frame[:] = _draw(scene, size, float(t))
    return clips, labels


def _labels(count: int, seed: int) -> Array:
    """Deals every class once per block of scenes, each block shuffled for itself, so that prefixes agree."""
    blocks = range(-(-count // len(CLASSES)))
    deals = [np.random.default_rng([seed, 1, block]).permutation(len(CLASSES)) for block in blocks]
    return np.concatenate(deals)[:count].astype(np.int64)


# --- what is drawn at random ----------------------------------------------------------------------


def _sample(rng: np.random.Generator, label: int) -> Scene:
    """Draws a scene; nothing but the thing depends on the label."""
    light = 1 if rng.random() < 0.85 else -1
    horizon = rng.uniform(0.36, 0.58)
    zenith, haze, tint = (_jitter(rng, colour) for colour in SKIES[rng.integers(len(SKIES))])
    soil = _jitter(rng, GROUNDS[rng.integers(len(GROUNDS))])
    has_road, has_furrows, has_water = rng.random(3) < (0.55, 0.3, 0.3)
    return Scene(
        thing=_sample_thing(rng, label, horizon),
        horizon=horizon,
        vanish=rng.uniform(0.25, 0.75),
        light=light,
        sun=(0.5 - light * rng.uniform(0.2, 0.6), horizon * rng.uniform(0.1, 0.8)),
        wind=rng.uniform(0.1, 0.25) * (1 if rng.random() < 0.85 else -1),
        zenith=zenith,
        haze=haze,
        tint=tint,
        soil=soil,
        ridge=0.7 * _jitter(rng, GROUNDS[rng.integers(len(GROUNDS))]),
        puffs=rng.uniform(12.0, 45.0),
        clouds=rng.uniform(-0.4, 1.8),
        mist=rng.uniform(0.01, 0.12),
        ridge_kind=int(rng.integers(len(RIDGES))),
        ridge_height=rng.uniform(0.08, 0.26),
        road=(rng.uniform(-0.5, 0.5), rng.uniform(0.12, 0.35) if has_road else 0.0),
        furrows=rng.uniform(2.0, 5.0) if has_furrows else 0.0,
        shore=rng.uniform(0.09, 0.2) if has_water else 0.0,
        clutter=rng.random((rng.integers(0, 9), 5)),
        traits=rng.random(8, np.float32),
    )


def _sample_thing(rng: np.random.Generator, label: int, horizon: float) -> Thing:
    kind = KINDS[CLASSES[label]]
    height = kind.height * rng.uniform(0.75, 1.25)
    margin = min(0.75 * kind.reach * height, 0.45)
    return Thing(
        label=label,
        x=rng.uniform(margin, 1 - margin),
        ground=rng.uniform(0.55 * horizon + 0.45, 0.95),
        height=height,
        facing=int(rng.choice((-1, 1))),
        main=_paint(rng),
        trim=_paint(rng),
        traits=rng.random(8, np.float32),
        grain=np.float32(15) * 10 ** rng.random(2, np.float32),
    )


def _jitter(rng: np.random.Generator, colour: tuple[float, float, float]) -> Colour:
    """Varies a colour, more in brightness than in hue."""
    return np.clip(_rgb(*colour) * rng.uniform(0.85, 1.12) + _rgb(*rng.normal(0, 0.03, 3)), 0.02, 1)


def _paint(rng: np.random.Generator) -> Colour:
    """A colour of any hue, neither black nor so dull that shapes vanish in haze."""
    hue, value, saturation = rng.random(), rng.uniform(0.45, 0.98), rng.uniform(0.2, 0.8)
    wheel = np.clip(np.abs((hue * 6 + _rgb(0, 4, 2)) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation * (1 - wheel))


# --- the picture, from back to front --------------------------------------------------------------


def _draw(scene: Scene, size: int, t: float) -> Array:
    """Returns the (size, size, 3) uint8 picture of a scene at time t in [0, 1]."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size
    x, y = centres[None, :], centres[:, None]
    picture = np.empty((3, size, size), np.float32)
    skyline = math.ceil(scene.horizon * size)
    picture[:, :skyline] = _sky(scene, x, y[:skyline], t)
    picture[:, skyline:] = _ground(scene, x, y[skyline:])
    _add_clutter(picture, scene)
    _add_thing(picture, scene, t)
    return cv2.merge([*np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)])


def _sky(scene: Scene, x: Array, y: Array, t: float) -> Array:
    height = scene.horizon - y
    sky = _mix(scene.haze, scene.zenith, np.sqrt(np.maximum(height, 0) / scene.horizon))
    # The clouds hang under a ceiling that recedes to the horizon as the ground does.
    depth = 0.6 / (height + 0.12)
    along = (x - scene.vanish) * depth - scene.wind * t
    offset = TILE * scene.traits[:2]
    noise, relief = _noise(scene.puffs * along + offset[0], 1.5 * scene.puffs * depth + offset[1])
    white = np.clip(0.9 + 0.12 * scene.light * relief, 0, 1) * scene.tint
    cover = np.clip((noise - scene.clouds) * 1.5, 0, 0.85) * np.clip(height * 8, 0, 1)
    sky = _mix(sky, white, cover)
    away = np.hypot(x - scene.sun[0], y - scene.sun[1])
    sky = _mix(sky, _rgb(1, 0.97, 0.88) * scene.tint, 0.6 * np.exp(-3.5 * away))
    if scene.clouds > 0:
        sky = _mix(sky, _rgb(1, 0.99, 0.93), _inside(0.04 - away, x.size))
    top = int((scene.horizon - scene.ridge_height) * x.size)
    for nearness in (0.0, 1.0):
        _add_ridge(sky[:, top:], scene, x, y[top:], nearness)
    return sky


def _add_ridge(sky: Array, scene: Scene, x: Array, y: Array, nearness: float) -> None:
    """Draws hills, mountains, a forest or a city along the horizon: lower and clearer the nearer they are."""
    profile = RIDGES[scene.ridge_kind](x + 0.37 * nearness, scene.traits)
    top = scene.horizon - scene.ridge_height * (1 - 0.5 * nearness) * profile
    noise, relief = _noise(x * 90 + TILE * (scene.traits[2] + 0.37 * nearness), y * 90)
    rock = (0.9 + 0.12 * noise + 0.16 * scene.light * relief) * (scene.ridge * scene.tint)
    haze = np.float32(0.62 - 0.37 * nearness)
    sky[:] = _mix(sky, _mix(rock, scene.haze, haze), _inside(y - top, x.size))


def _ground(scene: Scene, x: Array, y: Array) -> Array:
    """Draws a plane seen in perspective: what lies at `depth` is shrunk by it, about the vanishing point."""
    height = y - scene.horizon + NEAR
    depth = 1 / height
    across = (x - scene.vanish) * depth
    offset = TILE * scene.traits[4:6]
    noise, relief = _noise(across * 28 + offset[0], depth * 28 + offset[1])
    slope = 0.10 * relief
    if scene.furrows:
        slope += 0.15 * np.sin(2 * np.pi * scene.furrows * across)
    contrast = np.clip(height * 4, 0, 1)  # texture finer than the pixels would only flicker
    shade = 1 + contrast * (0.10 * noise + scene.light * slope) + 0.25 * scene.light * (0.5 - x)
    ground = shade * scene.soil
    centre, half = scene.road
    if half:
        beside = np.abs(across - centre)
        ground = _mix(ground, shade * (0.42 + 0.2 * scene.traits[6]), _inside(height * (half - beside), x.size))
        dashes = contrast * (np.sin(2 * np.pi * (4 * depth + scene.traits[7])) > 0)
        ground = _mix(ground, _rgb(0.95, 0.93, 0.8), _inside(height * (0.08 * half - beside), x.size) * dashes)
    if scene.shore:
        glitter, _ = _noise(across * 20, depth * 90)
        water = _mix(scene.zenith, scene.haze, np.clip(0.4 + 0.15 * glitter, 0, 1))
        ground = _mix(ground, water, _inside(scene.shore - height + 0.004 * noise, x.size))
    return _mix(ground * scene.tint, scene.haze, 0.8 * np.exp(-(height - NEAR) / scene.mist))


def _add_clutter(picture: Array, scene: Scene) -> None:
    """Strews bushes and stones over the land, and sets posts along the road."""
    layer = np.zeros((*picture.shape[1:], 4), np.uint8)
    coast = max(scene.shore, 0.03) + 0.02
    for x, near, kind, width, hue in scene.clutter[np.argsort(scene.clutter[:, 1])].tolist():
        height = coast + (1 - scene.horizon - coast) * near**2
        pen = Pen(layer, x, scene.horizon + height, height * (0.15 + 0.2 * width), scene.light)
        pen.disc(0.35, 0, 0.6, 0.12, INK, opacity=0.4)
        if kind < 0.6:
            for dx, dy, r in ((-0.3, 0.2, 0.3), (0.3, 0.22, 0.32), (0, 0.42, 0.36)):
                pen.disc(dx, dy, r, r, _rgb(0.2 + 0.3 * hue, 0.45, 0.2))
        else:
            stone = _rgb(0.5, 0.5, 0.48) * (0.8 + 0.5 * hue)
            pen.fill([(-0.4, 0), (-0.3, 0.3), (0.05, 0.42), (0.35, 0.25), (0.42, 0)], stone)
    centre, half = scene.road
    for near in np.arange(1, 9) / 8 if half else ():
        height = coast + (1.1 - scene.horizon) * near**2
        x = scene.vanish + (centre + 1.25 * half) * height
        pen = Pen(layer, x, scene.horizon + height - NEAR, 0.3 * height, scene.light)
        pen.fill([(0, 0), (0.1, 0), (0.7, -0.2), (0.6, -0.2)], INK, opacity=0.4)
        pen.stroke((0, 0), (0, 1), 0.12, WOOD * 1.3)
    _paste(picture, layer, scene)


def _add_thing(picture: Array, scene: Scene, t: float) -> None:
    """Draws the labelled object and the shadow it casts."""
    thing, size = scene.thing, len(picture[0])
    kind = KINDS[CLASSES[thing.label]]
    x = thing.x + thing.facing * kind.speed * (t - 0.5)
    y = thing.ground - kind.altitude - kind.rise * (t - 0.5)
    layer = np.zeros((size, size, 4), np.uint8)
    kind.draw(Pen(layer, x, y, thing.height, thing.facing), thing, 4 * scene.wind * thing.facing, t)
    _cast_shadow(picture, layer[..., 3], scene, y)
    pixels = np.arange(size, dtype=np.float32)
    texels = thing.grain / (thing.height * size)
    noise, _ = _noise((pixels[None, :] - x * size) * texels[0], (pixels[:, None] - y * size) * texels[1])
    _paste(picture, layer, scene, 0.14 * noise)


def _cast_shadow(picture: Array, shape: Array, scene: Scene, foot: float) -> None:
    """Darkens the ground where a shape's shadow falls: flipped, flattened and slanted away from the sun."""
    size = len(shape)
    ground = scene.thing.ground * size
    slant = 0.9 * scene.light
    fall = 0.4 * scene.light * (ground - foot * size)  # what flies casts its shadow further off
    source = np.array([[1, -slant, slant * ground - fall], [0, -3, foot * size + 3 * ground]], np.float32)
    shadow = cv2.warpAffine(shape, source, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    strength = 0.5 * min(max(scene.clouds + 0.6, 0.4), 1.0)  # fainter under an overcast sky
    picture *= 1 - shadow * np.float32(strength / 255)


def _paste(picture: Array, layer: Array, scene: Scene, texture: Array | float = 0.0) -> None:
    """Lays a layer over the picture, its edges bright towards the light and dark away from it."""
    reach = max(2, round(0.09 * len(layer)))
    *channels, alpha = cv2.split(layer)
    left, right = (cv2.blur(alpha, (reach, reach), anchor=(x, reach // 2)) for x in (reach - 1, 0))
    shade = 1 + texture + np.float32(0.45 / 255) * scene.light * cv2.subtract(right, left, dtype=cv2.CV_32F)
    bare = 1 - alpha / np.float32(255)
    for plane, channel, tint in zip(picture, channels, scene.tint.flat, strict=True):
        plane *= bare
        plane += channel * (shade * (tint / 255))


# --- tools ----------------------------------------------------------------------------------------


def _mix(a: Array, b: Array, share: Array) -> Array:
    """Blends colours: `a` where the share is 0, `b` where it is 1."""
    return a + (b - a) * share


def _inside(distance: Array, size: int) -> Array:
    """Coverage of pixels at a signed distance inside an edge, which makes it as soft as one pixel."""
    return np.clip(distance * size + 0.5, 0, 1)


@lru_cache(maxsize=1)
def _tile() -> Array:
    """Returns (TILE, TILE, 2): fractal noise that repeats seamlessly, and its slope, each of deviation 1."""
    white = np.random.default_rng(0).normal(size=(TILE, TILE))
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.fftfreq(TILE)[None, :])
    noise = np.fft.ifft2(np.fft.fft2(white) / (frequency + 3 / TILE) ** 1.4 * (frequency > 0)).real
    slope = noise - np.roll(noise, 2, axis=1)
    return np.stack([noise / noise.std(), slope / slope.std()], axis=-1).astype(np.float32)


def _noise(u: Array, v: Array) -> tuple[Array, Array]:
    """Samples the noise, and its slope towards +u, at texels (u, v), which broadcast; it repeats for ever."""
    wrapped = (w - TILE * np.floor(w / TILE) for w in (u, v))  # cv2.remap's own range is 16 bits
    columns, rows = (w.astype(np.float32, order="C") for w in np.broadcast_arrays(*wrapped))
    noise, slope = cv2.split(cv2.remap(_tile(), columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))
    return noise, slope


@dataclass(frozen=True)
class Pen:
    """Draws in an object's own coordinates: its height is 1, its foot (0, 0), its front +x, up +y."""

    layer: Array  # (size, size, 4) uint8, RGB premultiplied by opacity
    x: float
    y: float
    scale: float
    facing: int

    def fill(self, points: Points, colour: Colour, opacity: float = 1.0) -> None:
        """Fills a polygon."""
        place = np.asarray(points, np.float64) * (self.facing * self.scale, -self.scale) + (self.x, self.y)
        fixed = np.round((place * len(self.layer) - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)
        rgba = [255 * opacity * min(float(c), 1.0) for c in (*colour.ravel().tolist(), 1.0)]
        cv2.fillPoly(self.layer, [fixed], rgba, cv2.LINE_AA, SUBPIXEL_BITS)

    def box(self, left: float, bottom: float, right: float, top: float, colour: Colour) -> None:
        """Fills a rectangle."""
        self.fill([(left, bottom), (right, bottom), (right, top), (left, top)], colour)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour, opacity: float = 1.0) -> None:
        """Fills an upright ellipse about (x, y)."""
        self.fill(CIRCLE * (rx, ry) + (x, y), colour, opacity)

    def stroke(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """Draws a straight bar; cv2's own lines have widths of whole pixels."""
        a, b = np.array(start), np.array(end)
        along = (b - a) / max(np.hypot(*(b - a)), 1e-9)
        side = width / 2 * np.array([-along[1], along[0]])
        self.fill(np.stack([a + side, b + side, b - side, a - side]), colour)

    def wheel(self, x: float, r: float, t: float, rim: Colour) -> None:
        """Draws a wheel that stands on the ground and rolls forwards."""
        self.disc(x, r, r, r, INK)
        self.disc(x, r, 0.62 * r, 0.62 * r, rim)
        # Slower than it should roll: from one of eight frames to the next, a cross that turns by more than
        # 45 degrees would seem to turn backwards.
        for spoke in 4 * t + np.array([0, np.pi / 2]):
            dx, dy = 0.6 * r * np.cos(spoke), -0.6 * r * np.sin(spoke)
            self.stroke((x - dx, r - dy), (x + dx, r + dy), 0.22 * r, INK)

    def smoke(self, x: float, y: float, drift: float, t: float) -> None:
        """Draws puffs that rise from (x, y), grow, thin out and drift."""
        for age in np.sort((np.arange(6) / 6 + 0.5 * t) % 1)[::-1]:
            size = 0.05 + 0.11 * age
            self.disc(x + drift * age, y + 0.6 * age, size, 0.9 * size, SMOKE, 1 - 0.6 * age)


ANGLES = np.arange(28) * np.pi / 14
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)


# --- far layers: heights in [0, 1] over x, from the scene's traits --------------------------------


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


# --- the classes ----------------------------------------------------------------------------------
# One function each, of a pen, the thing's looks, the wind (along the pen's x, in the thing's own heights per
# clip; some classes ignore it) and the time.


def _car(pen: Pen, thing: Thing, wind: float, t: float) -> None:
    back = -0.45 - 0.7 * thing.traits[0]  # from saloon to van
    roof = [(0.75, 0.58), (0.3, 1.0), (back, 1.0), (max(back - 0.35, -1.2), 0.58)]
    pen.fill(roof, thing.main)
    glass = [(0.62, 0.6), (0.26, 0.92), (back + 0.06, 0.92), (max(back - 0.2, -1.1), 0.6)]
    pen.fill(glass, GLASS)
    pen.stroke((-0.15, 0.55), (-0.15, 0.95), 0.1, thing.main)
    pen.fill([(-1.22, 0.2), (1.22, 0.2), (1.25, 0.45), (1.1, 0.6), (0.7, 0.66), (-1.2, 0.66)], thing.main)
    pen.stroke((-1.2, 0.27), (1.22, 0.27), 0.12, thing.trim)
    pen.disc(1.13, 0.47, 0.09, 0.08, _rgb(1, 0.95, 0.7))
    pen.disc(-1.15, 0.52, 0.06, 0.08, _rgb(0.85, 0.12, 0.1))
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
    leaf = 0.45 * thing.main + _rgb(0.12, 0.28, 0.06)
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
    """What a class looks like and does; lengths in picture sides, motion over the whole clip."""

    draw: Callable[[Pen, Thing, float, float], None]
    height: float
    reach: float  # half its width, in own heights
    speed: float = 0.0  # forwards
    rise: float = 0.0
    altitude: float = 0.0  # of its foot above the ground


KINDS = {
    "car": Kind(_car, height=0.24, reach=1.2, speed=0.5),
    "house": Kind(_house, height=0.40, reach=0.75),
    "tree": Kind(_tree, height=0.52, reach=0.5),
    "plane": Kind(_plane, height=0.19, reach=1.4, speed=0.5, rise=0.08, altitude=0.46),
    "balloon": Kind(_balloon, height=0.48, reach=0.4, rise=0.25, altitude=0.22),
    "horse": Kind(_horse, height=0.34, reach=0.8, speed=0.35),
    "windmill": Kind(_windmill, height=0.50, reach=0.6),
    "train": Kind(_train, height=0.23, reach=1.6, speed=0.4),
}
CLASSES: tuple[str, ...] = tuple(KINDS)
