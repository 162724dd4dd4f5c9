"""A matplotlib backend whose windows are on no screen."""

import sys
import types
from collections.abc import Iterator
from typing import ClassVar

import matplotlib
import pytest
from matplotlib import pyplot
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

BACKEND = "windows_on_no_screen"


class Window(FigureManagerBase):
    """A window that counts what happens to it."""

    opened: ClassVar[list["Window"]] = []

    def __init__(self, canvas, num):
        super().__init__(canvas, num)
        self.raised, self.drawn, self.answered, self.destroyed = 0, 0, 0, False
        self.opened.append(self)

    def show(self):
        self.raised += 1

    def set_window_title(self, title):
        self.title = title

    def destroy(self):
        self.destroyed = True

    @property
    def picture(self):
        return self.canvas.figure.axes[0].images[0].get_array()


class Canvas(FigureCanvasAgg):
    """A canvas that tells its window when it is drawn and when it answers events."""

    manager_class = Window

    def draw_idle(self):
        self.manager.drawn += 1

    def flush_events(self):
        self.manager.answered += 1


class CanvasWithoutScreen(Canvas):
    """A canvas that cannot be shown."""

    @classmethod
    def new_manager(cls, figure, num):
        raise RuntimeError("cannot connect to the screen")


def open_windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Window]]:
    """Let matplotlib open windows, on a machine without a screen too; yields the list of them."""
    backend = types.ModuleType(BACKEND)
    backend.FigureCanvas = Canvas
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    monkeypatch.setattr(Window, "opened", [])
    before = matplotlib.get_backend()
    pyplot.switch_backend(f"module://{backend.__name__}")
    yield Window.opened
    pyplot.close("all")
    pyplot.switch_backend(before)
