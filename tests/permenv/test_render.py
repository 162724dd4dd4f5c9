"""Figures show the numbers of a run; pictures change with its validations; a window follows it."""

import gc
import pickle
import sys
import weakref

import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo
from matplotlib import pyplot
from matplotlib.colors import to_rgba

from permenv import ConfigurationError, render
from tests.helpers import PARTS, assert_same, random_actions, rollout, spatial_first
from tests.permenv.windows import CanvasWithoutScreen

# Figures

PSI = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0], [1, 2, 3, 0]])


def predictions(label=4, guess=4, stills=True, broken=False):
    """Return a sample of four tiles or frames under the permutations PSI, of which a network predicts one."""
    probabilities = np.full((1, 5), 0.1, np.float32)
    probabilities[0, [label, guess]] = 0.2, 0.6
    if broken:
        probabilities[:] = np.nan
    originals = np.zeros((1, 8, 8, 3) if stills else (1, 4, 4, 4, 3), np.uint8)
    true_order = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)  # n, h, w, 3
    return render.Predictions(
        originals=originals,
        pieces=true_order[PSI[label]][None],
        orders=PSI[[label]],
        labels=np.array([label]),
        probabilities=probabilities,
        guesses=PSI[[guess]],
        columns=2,
    )


def panel(**changes):
    shown = {
        "iterations": [0, 10, 20, 30],
        "errors": [0.8, 0.7, 0.65, 0.5],
        "credited": [False, True, False, True],
        "diverged": False,
        "next_validation": 40,
        "observation": np.array([[0.2, 0.9], [0.5, 1.0], [0.3, 1.2]]),
        "choices": np.array([6, 1, 3]),
        "sizes": np.array([0.4, 0.4, 0.2]),
        "predictions": predictions(),
    }
    return render.Panel(**{**shown, **changes})


def draw(**changes):
    figure = render.dashboard_figure("title", "status", {"spatial": panel(**changes)}, 60)
    assert render.to_array(figure).shape == (400, 1000, 3)
    return figure


def test_the_dashboard_shows_the_error_and_its_baseline():
    axis = draw().axes[0]
    assert axis.get_title(loc="left") == "spatial: E = 0.500"
    assert axis.get_xlim() == (0, 60)
    chance, errors, line, ahead = axis.lines
    assert set(chance.get_ydata()) == {0.8}
    assert list(zip(*errors.get_data(), strict=True)) == [(0, 0.8), (10, 0.7), (20, 0.65), (30, 0.5)]
    assert line.get_linestyle() == ":"
    assert line.get_xydata() == pytest.approx(np.array([[30, 0.5], [40, 0.35]]))
    assert ahead.get_xydata() == pytest.approx(np.array([[40, 0.35]]))
    # rewards: 0.1 over a flat line, 0.1 over the line through the last two; what ends free iterations earns none
    stems = [stem.get_segments()[0] for stem in axis.collections]
    assert np.array(stems) == pytest.approx(np.array([[[10, 0.7], [10, 0.8]], [[30, 0.5], [30, 0.6]]]))


def test_the_dashboard_shows_the_end_of_a_run_and_its_divergence():
    assert len(draw(next_validation=None).axes[0].lines) == 2
    curve = {"iterations": [0, 10, 20, 30, 31], "errors": [0.8, 0.7, 0.65, 0.5, 1], "credited": [0, 1, 0, 1, 1]}
    axis = draw(**curve, diverged=True, next_validation=None, predictions=predictions(broken=True)).axes[0]
    assert axis.get_title(loc="left") == "spatial: diverged"
    assert axis.lines[1].get_xydata()[-1].tolist() == [31, 1]
    assert axis.collections[-1].get_segments()[0] == pytest.approx(np.array([[31, 1], [31, 0.485]]))
    assert to_rgba(axis.collections[-1].get_color()[0])[:3] == to_rgba(render.VERMILION)[:3]


def test_the_dashboard_shows_the_state_and_the_choices():
    state, choices = draw().axes[1:3]
    boxes = np.array([bar.get_bbox().extents for bar in state.patches])  # left, from, right, to
    assert boxes == pytest.approx(np.array([[0, 1, 0.2, 0.9], [0.2, 1, 0.7, 1], [0.7, 1, 1, 1.2]]))
    assert [bar.get_facecolor() for bar in state.patches] == [tuple(colour) for colour in render.figure_colours(3)]
    assert [bar.get_height() for bar in choices.patches] == pytest.approx([0.4, 0.4, 0.2, 0.6, 0.1, 0.3])
    assert not choices.texts


def test_before_the_first_choice_the_dashboard_says_so():
    figure = draw(iterations=[0], errors=[0.8], credited=[False], choices=np.zeros(3, int), next_validation=10)
    assert [text.get_text() for text in figure.axes[2].texts] == ["none yet"]
    assert figure.axes[0].lines[-1].get_xydata().tolist() == [[10, 0.8]]


def shown_pieces(axis):
    """Return the pieces row by row, and the colours of their frames."""
    places = sorted(axis.images, key=lambda image: (-image.get_extent()[2], image.get_extent()[0]))
    corners = {box.get_xy(): box.get_edgecolor() for box in axis.patches}
    outlines = [corners[image.get_extent()[0], image.get_extent()[2]] for image in places]
    return [int(image.get_array()[0, 0, 0]) for image in places], outlines


@pytest.mark.parametrize("stills", [True, False])
def test_the_dashboard_puts_a_sample_back_in_the_predicted_order(stills):
    good, bad = to_rgba(render.GREEN), to_rgba(render.VERMILION)
    *_, shuffled, back = draw(predictions=predictions(stills=stills)).axes
    assert shown_pieces(shuffled)[0] == [1, 2, 3, 0]
    assert shown_pieces(back) == ([0, 1, 2, 3], [good] * 4)
    assert back.texts[-1].get_text() == "recognised, p = 0.60"
    *_, shuffled, back = draw(predictions=predictions(guess=1, stills=stills)).axes
    # it predicts 1, 0, 3, 2 for 1, 2, 3, 0: the piece predicted to be the first is the third, and so on
    assert shown_pieces(back) == ([2, 1, 0, 3], [bad, good, bad, good])
    assert back.texts[-1].get_text() == "predicted 1, true ψ ranks 2, p = 0.20"
    numbers = [text.get_text() for text in shuffled.texts]
    assert numbers == ([] if stills else ["2", "3", "4", "1"])


def test_predictions_that_are_not_finite_put_nothing_back():
    *_, shuffled, back = draw(predictions=predictions(broken=True)).axes
    assert len(shuffled.images) == 4
    assert not back.images
    assert back.texts[-1].get_text() == "not finite"


def test_two_tasks_are_two_rows():
    figure = render.dashboard_figure("title", "status", {"spatial": panel(), "temporal": panel()}, 60)
    assert render.to_array(figure).shape == (764, 1000, 3)
    assert [axis.get_title(loc="left") for axis in figure.axes[::5]] == ["spatial: E = 0.500", "temporal: E = 0.500"]


# The environment's pictures


@spatial_first
def test_the_picture_changes_at_validations_only(make_env, task):
    env = make_env(task=task, render_mode="rgb_array")
    env.reset(seed=0)
    last, pictures = env.render(), 1
    for action in random_actions(env, 20):
        info = env.step(action)[4]
        picture = env.render()
        assert picture.shape == (36 + 364 * len(PARTS[task]), 1000, 3)
        assert picture.dtype == np.uint8
        assert not picture.flags.writeable  # it may be handed out again
        assert (picture is last) == (not info["validated"])
        for part in range(len(PARTS[task]) if info["validated"] else 0):
            rows = slice(36 + 364 * part, 400 + 364 * part)
            assert not np.array_equal(picture[rows], last[rows])
        last, pictures = picture, pictures + info["validated"]
    assert pictures == 4


@spatial_first
def test_rendering_does_not_change_the_run(make_env, task):
    env, twin = make_env(task=task, render_mode="rgb_array"), make_env(task=task)
    env.reset(seed=0)
    twin.reset(seed=0)
    for action in random_actions(env, 16):
        env.render()
        assert_same([env.step(action)], [twin.step(action)])
    np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])  # the generator too


def drawn_anew(make_env, env):
    """The picture of a run that has never been drawn."""
    fresh = make_env(task=env.task, render_mode="rgb_array").unwrapped
    fresh.load_state_dict(env.state_dict())
    return fresh.render()


@pytest.mark.ci
def test_forks_copies_and_continued_runs_have_their_own_pictures(make_env, tmp_path):
    env = make_env(render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    rollout(env, [0] * 12)
    env.save(tmp_path / "run")
    saved, fork, copy = env.render(), env.fork(), pickle.loads(pickle.dumps(env))
    for each, group in ((fork, 1), (copy, 2), (env, 3)):
        np.testing.assert_array_equal(each.render(), saved)
        rollout(each, [group] * 12)
    pictures = [each.render() for each in (fork, copy, env)]
    for each, picture in zip((fork, copy, env), pictures, strict=True):
        np.testing.assert_array_equal(picture, drawn_anew(make_env, each))
    assert len({picture.tobytes() for picture in pictures}) == 3
    env.load_state_dict(fork.state_dict())  # another run with as many validations
    np.testing.assert_array_equal(env.render(), pictures[0])
    env.reset(options={"checkpoint": tmp_path / "run"})
    np.testing.assert_array_equal(env.render(), saved)


@spatial_first
def test_a_run_that_diverged_is_drawn(make_env, task):
    env = make_env(task=task, render_mode="rgb_array")
    env.reset(seed=0)
    rollout(env, random_actions(env, 12))
    before = env.render()
    for network in (env.unwrapped.run.trainer.network, env.unwrapped.run.trainer.eval_network):
        network.heads[PARTS[task][0]].classifier.bias.data.fill_(torch.nan)
    assert rollout(env, random_actions(env, 4))[-1][2]
    after = env.render()
    assert after.shape == before.shape
    assert not np.array_equal(after, before)


@pytest.mark.ci
@spatial_first
def test_episodes_are_recorded(make_env, tmp_path, task):
    env = make_env(task=task, render_mode="rgb_array", total_updates=2)
    env = RecordEpisodeStatistics(RecordVideo(env, str(tmp_path / "videos")))
    env.reset(seed=0)
    *steps, last = rollout(env, random_actions(env, 24))
    env.close()
    assert last[3]
    assert last[4]["episode"]["r"] == pytest.approx(sum(reward for _, reward, *_ in [*steps, last]))
    assert last[4]["episode"]["l"] == 24
    (file,) = (tmp_path / "videos").iterdir()
    video, frames = cv2.VideoCapture(str(file)), []
    assert video.get(cv2.CAP_PROP_FPS) == env.metadata["render_fps"]
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) in (24, 25)  # one after reset and each step; moviepy may round the last one off
    assert {frame.shape for frame in frames} == {(36 + 364 * len(PARTS[task]), 1000, 3)}
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 100


# Windows


@spatial_first
def test_a_window_follows_the_run(make_env, windows, task):
    env, twin = make_env(task=task, render_mode="human"), make_env(task=task, render_mode="rgb_array")
    (window,) = windows
    assert window.title == f"PermShuffle: {task}"
    assert window.raised == 0  # there is nothing to show yet
    env.reset(seed=0)
    twin.reset(seed=0)
    assert window.raised == 1
    np.testing.assert_array_equal(window.picture, twin.render())
    for action in random_actions(env, 12):
        drawn, (*_, info) = window.drawn, env.step(action)
        twin.step(action)
        assert window.drawn == drawn + info["validated"]
        np.testing.assert_array_equal(window.picture, twin.render())
    assert env.render() is None
    assert window.raised == 1  # it does not come to the front by itself
    assert window.answered == 1 + 12 / 4 + 1  # reset, every iteration, render
    assert tuple(window.canvas.figure.bbox.size) == (1000, 36 + 364 * len(PARTS[task]))
    env.close()
    assert window.destroyed
    assert windows == [window]


def test_a_run_continues_after_its_window_is_closed(make_env, windows):
    env = make_env(render_mode="human")
    env.reset(seed=0)
    pyplot.close("all")  # as whoever looks at it may
    rollout(env, random_actions(env, 12))
    assert windows[0].drawn == 0
    env.close()
    env.close()


def test_a_fork_is_not_shown_in_its_parents_window(make_env, windows):
    env = make_env(render_mode="human").unwrapped
    env.reset(seed=0)
    fork = env.fork()
    rollout(fork, random_actions(env, 12))
    fork.close()
    assert windows[0].drawn == 0
    assert not windows[0].destroyed
    rollout(env, random_actions(env, 12))
    assert windows[0].drawn == 2


@pytest.mark.parametrize("backend", ["agg", "windows_on_no_screen"])
def test_without_a_screen_a_window_raises_an_error_before_data_are_read(make_env, windows, monkeypatch, backend):
    if backend == "agg":
        pyplot.switch_backend("agg")
    else:
        monkeypatch.setattr(sys.modules[backend], "FigureCanvas", CanvasWithoutScreen)
        pyplot.switch_backend(f"module://{backend}")
    message = rf"render_mode='human'.*backend is '.*{backend}'; use render_mode='rgb_array', or.* set MPLBACKEND"
    with pytest.raises(ConfigurationError, match=message):
        make_env(render_mode="human", images="/nowhere")
    assert not pyplot.get_fignums()
    assert not windows


def test_rendering_before_reset_raises_an_error(make_env):
    with pytest.raises(gym.error.ResetNeeded):
        make_env(render_mode="rgb_array").unwrapped.render()


def test_a_picture_does_not_keep_its_run(make_env):
    env = make_env(render_mode="rgb_array")
    env.reset(seed=0)
    env.render()
    run = weakref.ref(env.unwrapped.run)
    env.reset(seed=1)
    gc.collect()
    assert run() is None
