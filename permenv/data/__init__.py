"""Sources of still images and video clips: embedded scenes, folders of files, arrays and datasets."""

from permenv.data.arrays import as_clips, as_images
from permenv.data.embedded import embedded_clips, embedded_scenes
from permenv.data.folder import image_folder
from permenv.data.messages import DataError
from permenv.data.sets import StillImages, VideoClips
from permenv.data.videos import video_folder

__all__ = [
    "DataError",
    "StillImages",
    "VideoClips",
    "as_clips",
    "as_images",
    "embedded_clips",
    "embedded_scenes",
    "image_folder",
    "video_folder",
]
