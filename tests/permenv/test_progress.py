"""Progress bars show in a terminal and in a notebook, and not in a log file."""

import io
import sys
import types

import pytest

from permenv.progress import progress_bar


class Terminal(io.StringIO):
    """A stream that says that somebody is looking."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "show", "shown"), [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)]
)
def test_a_bar_shows_where_somebody_looks(monkeypatch, stream, show, shown):
    written = stream()
    monkeypatch.setattr(sys, "stderr", written)
    assert list(progress_bar([1, 2, 3], label="reading", unit="item", show=show)) == [1, 2, 3]
    assert ("reading: 100%" in written.getvalue()) == shown


@pytest.mark.parametrize("show", [True, False])
@pytest.mark.filterwarnings("ignore:IProgress not found")
def test_a_bar_shows_in_a_notebook_which_is_no_terminal(monkeypatch, show):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with progress_bar(total=2, label="reading", unit="item", show=show) as bar:
        bar.update(2)
    assert ("reading: 100%" in written.getvalue()) == show
