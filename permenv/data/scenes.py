"""Labelled landscapes rendered from a seed: the dataset that needs no files.

A scene is one *object* (its class is the label) that stands in, or flies over, a *landscape* independent of the
class, and a *camera*. The parts of a picture have a fixed arrangement: the sky gets paler towards the horizon, the
ground shrinks towards a vanishing point, one light shades every shape and casts every shadow, and the parts of an
object lie where its class has them. The camera pans, zooms and rolls at random, often until sky or ground fills the
view. So the content of a tile seldom gives away its position, and a jigsaw puzzle is mostly solved by the object.
Clips have a direction of time: vehicles drive forwards, balloons rise, sails turn clockwise, and smoke and clouds
drift with the wind, mostly to the right. The camera pans at the same time, mostly to the right as well.

All random numbers but the sensor's noise are drawn once, into a frozen `Scene`. A picture is a function of
the scene, a size and a time. A scene's points are (x, y), x to the right of the object and y downwards from the
horizon. Their unit is arbitrary and the camera converts it to pixels, so a scene looks the same at every size.
Pictures have channels first, which numpy blends fastest, until `_develop` returns bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from permenv.data.objects import (
    CLASSES,
    KINDS,
    RIDGES,
    TILE,
    Array,
    Colour,
    Pen,
    Thing,
    cast_shadow,
    draw_bush,
    draw_post,
    draw_stone,
    fractal_noise,
    paste,
    rgb,
    sample_thing,
)

__all__ = ["CLASSES", "RECIPE", "check", "deal_labels", "render_clip"]

SMALLEST = 16  # side of a picture, in pixels
RECIPE = 1  # increase it when the same seed gives other pixels: checkpoints and the cache name data by it
NEAR = 0.02  # how far below the true horizon the ground is cut off, to keep depths finite
MAX_ROLL = 6.0  # degrees
ROOM = 1.1  # side of what is drawn, relative to the picture that is cut from it after the roll: cos + sin of MAX_ROLL

# Colours of zenith, horizon and light.
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


@dataclass(frozen=True)
class Camera:
    """Position, zoom and image quality of the camera."""

    x: float  # of the picture's centre
    y: float
    side: float  # of the picture, in the scene's unit
    roll: float  # degrees
    blur: float  # of the background, in picture sides
    glow: tuple[float, float]  # increase of brightness across the picture, rightwards and downwards
    saturation: float  # of the colours, 0 for a grey picture
    noise: float  # standard deviation of the pixels, 0 to 255
    noise_seed: int


@dataclass(frozen=True, eq=False)
class Scene:
    """All random choices of one scene."""

    camera: Camera
    thing: Thing
    vanish: float  # x of the vanishing point
    light: int  # +1: from the left
    sun: tuple[float, float]
    wind: float  # drift over the whole clip, in picture sides
    zenith: Colour
    haze: Colour
    tint: Colour
    soil: Colour
    moss: Colour  # of the patches on the soil
    ridge: Colour
    puffs: float  # noise-tile texels per unit of the clouds' ceiling: the higher, the smaller the clouds
    clouds: float  # noise level above which there is cloud
    mist: float  # how far the haze reaches towards the viewer
    patches: tuple[float, float]  # noise-tile texels per unit of the ground plane, and clearness, 0 for a mixture
    ridge_kind: int  # index into RIDGES
    ridge_height: float
    road: tuple[float, float]  # centre and half-width on the ground plane; half-width 0 for none
    furrows: float  # furrows per unit of the ground plane; 0 for none
    shore: float  # how far below the horizon there is water
    clutter: Array  # (n, 5) bushes and stones, the furthest first: x, y, and in [0, 1) kind, width and hue
    traits: Array  # (8,) in [0, 1): phases of ridges and textures
    pan: Array  # (2,) how far the camera moves over the whole clip, in picture sides, rightwards and downwards


def check(count: int, frames: int, size: int, seed: int) -> None:
    """Raise a ValueError if a number of scenes, of pictures of each, their side or a seed is too small."""
    for name, value, least in (("count", count, 1), ("frames", frames, 1), ("size", size, SMALLEST), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}; pass at least {least}")


def render_clip(index: int, label: int, frames: int, size: int, seed: int) -> Array:
    """Render a short clip of one scene.

    Args:
        index: Number of the scene. It depends on `index`, `label` and `seed` alone.
        label: Its class, as `deal_labels` gives it.
        frames: Number of pictures, at least 1, evenly spaced over the scene's time from 0 to 1. A single
            picture shows time 0.5, which is also the middle one of an odd number.
        size: Side of the pictures in pixels, at least 16.
        seed: Non-negative; another seed gives other scenes.

    Returns:
        (frames, size, size, 3) uint8 RGB.
    """
    scene = _sample(np.random.default_rng([seed, 0, index]), label)
    times = np.linspace(0, 1, frames) if frames > 1 else (0.5,)
    return np.stack([_draw(scene, size, float(t)) for t in times])


def deal_labels(count: int, seed: int) -> Array:
    """Return (count,) int64 labels: every class once per block, each block shuffled on its own, so prefixes agree."""
    blocks = range(-(-count // len(CLASSES)))
    deals = [np.random.default_rng([seed, 1, block]).permutation(len(CLASSES)) for block in blocks]
    return np.concatenate(deals)[:count].astype(np.int64)


def _sample(rng: np.random.Generator, label: int) -> Scene:
    """Draw a scene at random. Only the object, and how the camera frames it, depends on the label."""
    thing = sample_thing(rng, label)
    camera = _sample_camera(rng, thing)
    light = int(rng.choice((-1, 1)))  # otherwise the shading of a tile would give away its column
    zenith, haze, tint = (_jitter(rng, colour) for colour in SKIES[rng.integers(len(SKIES))])
    has_road, has_furrows, has_water = rng.random(3) < (0.5, 0.3, 0.25)
    shore = rng.uniform(0.05, 0.9) * thing.ground if has_water else 0.0
    return Scene(
        camera=camera,
        thing=thing,
        vanish=camera.x + rng.uniform(-0.8, 0.8),
        light=light,
        sun=(camera.x - light * rng.uniform(0.1, 0.8), -rng.uniform(0.03, 0.6)),
        wind=rng.uniform(0.1, 0.25) * (1 if rng.random() < 0.85 else -1),
        zenith=_mix(haze, zenith, rng.uniform(0.1, 1.0)),
        haze=haze,
        tint=tint,
        soil=_jitter(rng, GROUNDS[rng.integers(len(GROUNDS))]),
        moss=_jitter(rng, GROUNDS[rng.integers(len(GROUNDS))]),
        patches=(math.exp(rng.uniform(math.log(3), math.log(30))), rng.uniform(0.0, 3.0)),
        ridge=0.7 * _jitter(rng, GROUNDS[rng.integers(len(GROUNDS))]),
        puffs=rng.uniform(12.0, 45.0),
        clouds=rng.uniform(-0.4, 1.8),
        mist=rng.uniform(0.01, 0.12),
        ridge_kind=int(rng.integers(len(RIDGES))),
        ridge_height=rng.uniform(0.08, 0.3),
        road=(rng.uniform(-0.8, 0.8), rng.uniform(0.12, 0.35) if has_road else 0.0),
        furrows=rng.uniform(2.0, 5.0) if has_furrows else 0.0,
        shore=shore,
        clutter=_sample_clutter(rng, camera, shore),
        traits=rng.random(8, np.float32),
        pan=_sample_pan(rng),
    )


def _sample_camera(rng: np.random.Generator, thing: Thing) -> Camera:
    """Draw a camera that frames the object, from half of the picture to larger than it, anywhere in the picture."""
    width, height = 2 * KINDS[CLASSES[thing.label]].reach * thing.height, thing.height
    side = max(width, height) / math.exp(rng.uniform(math.log(0.5), math.log(1.5)))
    slack_x, slack_y = (0.5 * abs(side - span) + 0.2 * span for span in (width, height))
    return Camera(
        x=rng.uniform(-slack_x, slack_x),
        y=thing.ground - thing.altitude - 0.5 * height + rng.uniform(-slack_y, slack_y),
        side=side,
        roll=float(np.clip(rng.normal(0, 0.4 * MAX_ROLL), -MAX_ROLL, MAX_ROLL)),
        blur=max(rng.uniform(-0.006, 0.012), 0.0),
        glow=(rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4)),
        saturation=rng.uniform(0.0, 1.2),
        noise=rng.uniform(1.0, 8.0),
        noise_seed=int(rng.integers(1 << 32)),
    )


def _sample_pan(rng: np.random.Generator) -> Array:
    """Draw how the camera moves: sideways, in one of eight clips to the left, and a little up or down."""
    return np.array([rng.choice((1, -1), p=(7 / 8, 1 / 8)) * rng.uniform(0.15, 0.5), rng.uniform(-0.1, 0.1)])


def _sample_clutter(rng: np.random.Generator, camera: Camera, shore: float) -> Array:
    """Draw positions and looks of bushes and stones on the land in view."""
    draws = rng.random((rng.integers(0, 12), 5))
    furthest, nearest = max(shore, camera.y - 0.5 * camera.side, 0.03) + 0.02, camera.y + 0.65 * camera.side
    if nearest <= furthest:
        return draws[:0]
    draws[:, 0] = camera.x + 1.2 * camera.side * (draws[:, 0] - 0.5)
    draws[:, 1] = furthest + (nearest - furthest) * draws[:, 1]
    return draws[np.argsort(draws[:, 1])]


def _jitter(rng: np.random.Generator, colour: tuple[float, float, float]) -> Colour:
    """Vary a colour, more in brightness than in hue."""
    return np.clip(rgb(*colour) * rng.uniform(0.85, 1.12) + rgb(*rng.normal(0, 0.03, 3)), 0.02, 1)


@dataclass(frozen=True, eq=False)
class View:
    """The scene's coordinates of the pixels, or of some rows of them."""

    x: Array  # (1, columns)
    y: Array  # (rows, 1)
    scale: float  # pixels per unit of the scene

    def row(self, y: float) -> int:
        """Return the first row below a height, clipped to the view."""
        return min(max(math.ceil((y - self.y[0, 0]) * self.scale), 0), len(self.y))

    def rows(self, rows: slice) -> View:
        """Return the view of some rows."""
        return View(self.x, self.y[rows], self.scale)

    def pen(self, layer: Array, x: float, y: float, height: float, facing: int) -> Pen:
        """Return a pen for an object of this height with its foot at (x, y)."""
        column, row = ((points - centres.flat[0]) * self.scale + 0.5 for points, centres in ((x, self.x), (y, self.y)))
        return Pen(layer, column, row, height * self.scale, facing)


def _draw(scene: Scene, size: int, t: float) -> Array:
    """Return the (size, size, 3) uint8 picture of a scene at time t in [0, 1]."""
    import cv2

    camera = scene.camera
    side = math.ceil(ROOM * size)
    centres = (np.arange(side) + 0.5 - 0.5 * side) * (camera.side / size)
    moved = (t - 0.5) * camera.side * scene.pan
    x, y = (centres + offset for offset in (camera.x + moved[0], camera.y + moved[1]))
    view = View(x.astype(np.float32)[None, :], y.astype(np.float32)[:, None], size / camera.side)
    picture = np.empty((3, side, side), np.float32)
    skyline = view.row(0.0)
    if skyline > 0:
        picture[:, :skyline] = _sky(scene, view.rows(slice(skyline)), t)
    if skyline < side:
        picture[:, skyline:] = _ground(scene, view.rows(slice(skyline, None)))
    _add_clutter(picture, scene, view, -math.inf, scene.thing.ground)
    if camera.blur * size > 0.25:  # less is invisible
        for plane in picture:
            cv2.GaussianBlur(plane, (0, 0), camera.blur * size, dst=plane)
    _add_thing(picture, scene, view, t)
    _add_clutter(picture, scene, view, scene.thing.ground, math.inf)
    return _develop(picture, camera, size, t)


def _develop(picture: Array, camera: Camera, size: int, t: float) -> Array:
    """Apply saturation, glow, roll and noise to what the camera sees; return (size, size, 3) uint8."""
    import cv2

    side = picture.shape[1]
    ramp = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / side - np.float32(0.5)
    grey = (1 - camera.saturation) / 3 * picture.sum(axis=0)
    picture *= camera.saturation
    picture += grey
    picture *= 1 + camera.glow[0] * ramp[None, :] + camera.glow[1] * ramp[:, None]
    turn = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), camera.roll, 1.0)
    turn[:, 2] -= (side - size) / 2
    pixels = cv2.warpAffine(cv2.merge([*picture]), turn, (size, size), borderMode=cv2.BORDER_REPLICATE)
    noise = np.random.default_rng([camera.noise_seed, round(1e6 * t)]).standard_normal(pixels.shape, np.float32)
    return cv2.addWeighted(pixels, 255, noise, camera.noise, 0, dtype=cv2.CV_8U)


def _sky(scene: Scene, view: View, t: float) -> Array:
    x, height = view.x, np.maximum(-view.y, 0)
    sky = _mix(scene.haze, scene.zenith, np.minimum(np.sqrt(2 * height), 1))
    # The clouds hang under a ceiling that recedes to the horizon as the ground does.
    depth = 0.6 / (height + 0.12)
    along = (x - scene.vanish) * depth - scene.wind * scene.camera.side * t
    offset = TILE * scene.traits[:2]
    noise, relief = fractal_noise(scene.puffs * along + offset[0], 1.5 * scene.puffs * depth + offset[1])
    white = np.clip(0.9 + 0.12 * scene.light * relief, 0, 1) * scene.tint
    cover = np.clip((noise - scene.clouds) * 1.5, 0, 0.85) * np.clip(height * 8, 0, 1)
    sky = _mix(sky, white, cover)
    away = np.hypot(x - scene.sun[0], view.y - scene.sun[1])
    sky = _mix(sky, rgb(1, 0.97, 0.88) * scene.tint, 0.6 * np.exp(-3.5 * away))
    if scene.clouds > 0:
        sky = _mix(sky, rgb(1, 0.99, 0.93), _inside(0.04 - away, view.scale))
    top = view.row(-scene.ridge_height)
    if top < len(view.y):
        for nearness in (0.0, 1.0):
            _add_ridge(sky[:, top:], scene, view.rows(slice(top, None)), nearness)
    return sky


def _add_ridge(sky: Array, scene: Scene, view: View, nearness: float) -> None:
    """Draw hills, mountains, a forest or a city along the horizon. Near ones are lower and less hazy."""
    profile = RIDGES[scene.ridge_kind](view.x + 0.37 * nearness, scene.traits)
    top = -scene.ridge_height * (1 - 0.5 * nearness) * profile
    noise, relief = fractal_noise(view.x * 90 + TILE * (scene.traits[2] + 0.37 * nearness), view.y * 90)
    rock = (0.9 + 0.12 * noise + 0.16 * scene.light * relief) * (scene.ridge * scene.tint)
    haze = np.float32(0.62 - 0.37 * nearness)
    sky[:] = _mix(sky, _mix(rock, scene.haze, haze), _inside(view.y - top, view.scale))


def _ground(scene: Scene, view: View) -> Array:
    """Return a plane in perspective: what lies at `depth` is smaller by this factor, about the vanishing point."""
    height = view.y + NEAR
    depth = 1 / height
    across = (view.x - scene.vanish) * depth
    offset = TILE * scene.traits[4:6]
    noise, relief = fractal_noise(across * 28 + offset[0], depth * 28 + offset[1])
    slope = 0.10 * relief
    if scene.furrows:
        slope += 0.15 * np.sin(2 * np.pi * scene.furrows * across)
    contrast = np.clip(height * 4, 0, 1)  # texture finer than the pixels would flicker
    shade = 1 + contrast * (0.14 * noise + scene.light * slope)
    density, clearness = scene.patches
    blots, _ = fractal_noise(across * density - offset[0], depth * density - offset[1])
    ground = shade * _mix(scene.soil, scene.moss, np.clip(0.5 + clearness * blots, 0, 1))
    centre, half = scene.road
    if half:
        beside = np.abs(across - centre)
        ground = _mix(ground, shade * (0.42 + 0.2 * scene.traits[6]), _inside(height * (half - beside), view.scale))
        dashes = contrast * (np.sin(2 * np.pi * (4 * depth + scene.traits[7])) > 0)
        ground = _mix(ground, rgb(0.95, 0.93, 0.8), _inside(height * (0.08 * half - beside), view.scale) * dashes)
    if scene.shore:
        glitter, _ = fractal_noise(across * 20, depth * 90)
        water = _mix(scene.zenith, scene.haze, np.clip(0.4 + 0.15 * glitter, 0, 1))
        ground = _mix(ground, water, _inside(scene.shore - height + 0.004 * noise, view.scale))
    return _mix(ground * scene.tint, scene.haze, 0.8 * np.exp(-(height - NEAR) / scene.mist))


def _add_clutter(picture: Array, scene: Scene, view: View, beyond: float, until: float) -> None:
    """Draw the bushes, stones and posts along the road whose foot lies in a range of y."""
    layer = np.zeros((*picture.shape[1:], 4), np.uint8)
    for x, y, kind, width, hue in scene.clutter.tolist():
        if not beyond < y <= until:
            continue
        pen = view.pen(layer, x, y, min(y, 0.6) * (0.15 + 0.25 * width), scene.light)
        draw_bush(pen, hue) if kind < 0.6 else draw_stone(pen, hue)
    for x, y in _posts(scene):
        if beyond < y <= until:
            draw_post(view.pen(layer, x, y, 0.3 * y, scene.light))
    if layer.any():
        paste(picture, layer, scene.light, scene.tint)


def _posts(scene: Scene) -> list[tuple[float, float]]:
    """Return the feet of the posts along the road, without those far out of view."""
    centre, half = scene.road
    if not half:
        return []
    y = max(scene.shore, 0.03) + 0.02 + 1.1 * np.linspace(0.1, 1, 10) ** 2
    x = scene.vanish + (centre + 1.25 * half) * (y + NEAR)
    camera = scene.camera
    seen = np.maximum(np.abs(x - camera.x), np.abs(y - camera.y)) < 0.8 * camera.side
    return list(zip(x[seen].tolist(), y[seen].tolist(), strict=True))


def _add_thing(picture: Array, scene: Scene, view: View, t: float) -> None:
    """Draw the labelled object and its shadow."""
    thing = scene.thing
    kind = KINDS[CLASSES[thing.label]]
    x = thing.facing * kind.speed * scene.camera.side * (t - 0.5)
    y = thing.ground - thing.altitude - kind.rise * scene.camera.side * (t - 0.5)
    layer = np.zeros((*picture.shape[1:], 4), np.uint8)
    pen = view.pen(layer, x, y, thing.height, thing.facing)
    kind.draw(pen, thing, 4 * scene.wind * thing.facing, t)
    ground = pen.y + (thing.ground - y) * view.scale
    strength = 0.5 * min(max(scene.clouds + 0.6, 0.4), 1.0)  # fainter under an overcast sky
    cast_shadow(picture, layer[..., 3], scene.light, strength, pen.y, ground)
    pixels = np.arange(len(layer), dtype=np.float32)
    texels = thing.grain / np.float32(pen.scale)
    noise, _ = fractal_noise((pixels[None, :] - pen.x) * texels[0], (pixels[:, None] - pen.y) * texels[1])
    paste(picture, layer, scene.light, scene.tint, kind.roughness * noise)


def _mix(a: Array, b: Array, share: Array | float) -> Array:
    """Blend colours: `a` where the share is 0, `b` where it is 1."""
    return a + (b - a) * share


def _inside(distance: Array, scale: float) -> Array:
    """Return how much of a pixel is covered, from its signed distance inside an edge; the edge is one pixel soft."""
    return np.clip(distance * scale + 0.5, 0, 1)
