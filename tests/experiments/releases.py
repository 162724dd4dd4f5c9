"""File trees laid out exactly as the original releases, with tiny content: ImageNet, VOC 2007 and 2012, UCF-101.

Beside them, the proposals that were released with Fast R-CNN.
"""

import itertools
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

_VOC = """<annotation>
	<folder>VOC{year}</folder>
	<filename>{name}.jpg</filename>
	<source><database>The VOC{year} Database</database><annotation>PASCAL VOC{year}</annotation></source>
	<size><width>{side}</width><height>{side}</height><depth>3</depth></size>
	<segmented>1</segmented>
	<object>
		<name>{kind}</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>
		<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>130</xmax><ymax>120</ymax></bndbox>
	</object>
</annotation>
"""


def _photo(rng: np.random.Generator, kind: int, side: int, contrast: int = 128) -> np.ndarray:
    """Noise with stripes, whose direction untrained features tell as well."""
    pixels = rng.integers(0, 128, (side, side, 3), dtype=np.uint8)
    stripes = np.arange(side) // 4 % 2 == 1
    pixels[stripes if kind % 2 else np.s_[:, stripes]] += contrast
    return pixels


def imagenet(root: Path, *, each: int = 30, side: int = 60, contrast: int = 128) -> tuple[Path, Path]:
    """Two classes, train/n01440764/n01440764_18.JPEG, ..., val/n01440764/ILSVRC2012_val_00000293.JPEG, ...

    They differ by so much; with 0 they are noise, and figures are chance, which any change of features moves.
    """
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind, wnid in enumerate(("n01440764", "n02102040")):
            for number in range(each):
                name = f"{wnid}_{number}" if part == "train" else f"ILSVRC2012_val_{each * kind + number:08d}"
                path = root / part / wnid / f"{name}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(_photo(rng, kind, side, contrast)).save(path, format="JPEG")
    return root / "train", root / "val"


def voc(root: Path, *, year: int = 2007, each: int = 56, side: int = 140) -> Path:
    """VOCdevkit/VOC2007 or VOC2012 with a cat or a dog in each image, lists of classes included."""
    release, parts = root / "VOCdevkit" / f"VOC{year}", ("trainval", "test") if year == 2007 else ("train", "val")
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject", "ImageSets/Layout"):
        (release / folder).mkdir(parents=True)
    rng, lists = np.random.default_rng(0), {}
    for part in parts:
        for number in range(each):
            name, kind = f"{len(lists):06d}" if year == 2007 else f"2007_{len(lists):06d}", ("cat", "dog")[number % 2]
            lists[name] = (part, kind)
            Image.fromarray(_photo(rng, number, side)).save(release / "JPEGImages" / f"{name}.jpg")
            (release / "Annotations" / f"{name}.xml").write_text(
                _VOC.format(year=year, name=name, kind=kind, side=side)
            )
            mask = np.zeros((side, side), np.uint8)
            mask[10:120, 10:130] = 8 if kind == "cat" else 12
            mask[9] = 255
            picture = Image.fromarray(mask)
            picture.putpalette(list(range(256)) * 3)  # the release's have colours
            picture.save(release / "SegmentationClass" / f"{name}.png")
    for kind in ("Main", "Segmentation"):
        (release / "ImageSets" / kind).mkdir()
        for part in parts:
            names = [name for name, (own, _) in lists.items() if own == part]
            (release / "ImageSets" / kind / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
            for animal in ("cat", "dog"):
                lines = "".join(f"{name} {1 if lists[name][1] == animal else -1:2d}\n" for name in names)
                (release / "ImageSets" / "Main" / f"{animal}_{part}.txt").write_text(lines)
    return release


def proposals(root: Path, release: Path, *, side: int = 140) -> Path:
    """voc_2007_trainval.mat and voc_2007_test.mat: five boxes an image, [ymin, xmin, ymax, xmax] counted from 1."""
    boxes = np.array([[11, 11, 120, 130], [1, 1, side, side], [30, 20, 110, 125], [60, 1, side, 70], [5, 9, 40, 44]])
    root.mkdir()
    for part in ("trainval", "test"):
        names = (release / "ImageSets" / "Main" / f"{part}.txt").read_text().split()
        images, of_each = np.empty((len(names), 1), dtype=object), np.empty((1, len(names)), dtype=object)
        for row, name in enumerate(names):
            images[row, 0], of_each[0, row] = name, boxes.astype(np.float64)
        savemat(root / f"voc_2007_{part}.mat", {"images": images, "boxes": of_each})
    return root


def ucf(root: Path) -> Path:
    """UCF-101/Archery/v_Archery_g01_c01.avi, ..., and ucfTrainTestlist with three splits by group."""
    rng, clips = np.random.default_rng(0), []
    for kind, name in enumerate(("Archery", "Biking")):
        for group, number in itertools.product((1, 2, 3), (1, 2)):
            path = root / "UCF-101" / name / f"v_{name}_g{group:02d}_c{number:02d}.avi"
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
            for _ in range(12):
                writer.write(np.ascontiguousarray(_photo(rng, kind, 64)[:48]))
            writer.release()
            clips.append((f"{name}/{path.name}", kind + 1, group))
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 Biking\n")
    for split in (1, 2, 3):
        train = [f"{clip} {number}\n" for clip, number, group in clips if group != split]
        (lists / f"trainlist{split:02d}.txt").write_text("".join(train))
        (lists / f"testlist{split:02d}.txt").write_text(
            "".join(f"{clip}\n" for clip, _, group in clips if group == split)
        )
    return root / "UCF-101"
