"""Scripts in processes of their own."""

from experiments.common.commands import run_command


def test_what_it_prints_is_in_the_log_and_what_fails_is_told(tmp_path):
    log = tmp_path / "wrong.log"
    wrong = run_command(["-c", "print('why'); raise SystemExit(3)"], log)
    assert (wrong["ended"], wrong["code"]) == ("with code 3", 3)
    assert log.read_text() == "why\n"
    assert run_command(["-c", "print('well')"], log)["ended"] == "well"
    assert log.read_text() == "well\n"


def test_what_takes_too_long_is_stopped(tmp_path):
    slow = run_command(["-c", "import time; time.sleep(60)"], tmp_path / "slow.log", seconds=1)
    assert slow["ended"] == "stopped when its time was over"
    assert slow["seconds"] < 30
