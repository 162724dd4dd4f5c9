"""The run on the screen, or as one picture after the other: drawn when it has changed."""

from __future__ import annotations

import copy
import weakref

import matplotlib
import numpy as np
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.image import AxesImage

from permenv.config import ConfigurationError
from permenv.episode import Episode
from permenv.render import dashboard, to_array


class Renderer:
    """Draws the dashboard of a run, and draws it again only when the run has changed.

    Args:
        title: Of the window and the picture.
        mode: "rgb_array" or "human".

    Raises:
        ConfigurationError: If matplotlib can open no window for "human".
    """

    def __init__(self, title: str, mode: str):
        self._title = title
        self._mode = mode
        self._window = Window(title) if mode == "human" else None
        self._drawn: tuple[weakref.ref[Episode], tuple[int, bool], np.ndarray] | None = None

    def show(self, episode: Episode) -> np.ndarray | None:
        """Show the run in the window, or return its picture (H, W, 3) uint8, read-only."""
        if self._mode == "human" and self._window is None:
            return None
        moment = len(episode.run.records), episode.run.diverged
        if self._drawn is None or self._drawn[0]() is not episode or self._drawn[1] != moment:
            picture = to_array(dashboard(self._title, episode))
            picture.flags.writeable = False
            self._drawn = weakref.ref(episode), moment, picture
        picture = self._drawn[2]
        if self._window is None:
            return picture
        self._window.show(picture)
        return None

    def without_window(self) -> Renderer:
        """A renderer for a copy of the run: the window stays with the original."""
        twin = copy.copy(self)
        twin._window = None
        return twin

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None


class Window:
    """A window on the screen that shows one picture after the other.

    Args:
        title: Of the window.

    Raises:
        ConfigurationError: If matplotlib can open none here.
    """

    def __init__(self, title: str):
        from matplotlib import pyplot  # it looks for a GUI toolkit, which nothing else needs

        self._pyplot = pyplot
        try:
            self._figure = pyplot.figure(dpi=100)  # not on the screen yet
        except Exception as error:  # a toolkit or a screen is missing: every toolkit has an exception of its own
            raise self._impossible() from error
        manager = self._figure.canvas.manager
        if manager is None or type(manager).show is FigureManagerBase.show:  # the backend has no way to show one
            pyplot.close(self._figure)
            raise self._impossible()
        manager.set_window_title(title)
        self._image: AxesImage | None = None
        self._shown: np.ndarray | None = None

    def show(self, picture: np.ndarray) -> None:
        """Show an (H, W, 3) uint8 picture and process pending window events; do nothing if the window was closed.

        The window comes to the front with its first picture only.
        """
        if not self._pyplot.fignum_exists(self._figure.number):
            return
        if self._image is None:
            height, width = picture.shape[:2]
            self._figure.set_size_inches(width / 100, height / 100)
            axis = self._figure.add_axes((0, 0, 1, 1))
            axis.set_axis_off()
            self._image = axis.imshow(picture)
            self._figure.show()
        elif picture is not self._shown:
            self._image.set_data(picture)
            self._figure.canvas.draw_idle()
        self._shown = picture
        self._figure.canvas.flush_events()

    def close(self) -> None:
        """Close the window."""
        self._pyplot.close(self._figure)

    def _impossible(self) -> ConfigurationError:
        backend = matplotlib.rcParams["backend"]
        return ConfigurationError(
            f"render_mode='human': matplotlib opens no window here, its backend is {backend!r}; use "
            f"render_mode='rgb_array', or, where there is a screen, set MPLBACKEND to a backend with windows, such as "
            f"tkagg or qtagg, and install its toolkit"
        )
