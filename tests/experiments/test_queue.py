"""The queue of long runs: what is done is not done again, what fails holds up nobody."""

import json
import shlex

import jax
import pytest

from experiments import queue
from experiments.hamm_2018 import minimax_defense
from experiments.pinot_2020 import boosted, boosted_table
from experiments.run import command_line

OK = """
import json, pathlib, sys
place = pathlib.Path(sys.argv[sys.argv.index('--run-dir') + 1])
place.mkdir(parents=True, exist_ok=True)
with (place / 'starts').open('a') as starts:
    starts.write(' '.join(sys.argv[1:]) + chr(10))
(place / 'config.json').write_text('{}')
if len((place / 'starts').read_text().splitlines()) < int(sys.argv[1]):
    raise SystemExit(3)
command = ' '.join(['python -m own_program', *sys.argv[1:]])
result = {'n': sys.argv[1], 'provenance': {'command': command}}
(place / 'result.json').write_text(json.dumps(result))
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Three runs of a program of our own, the second of which fails the first time."""
    jax.devices()  # whose threads forbid a fork of this process
    (tmp_path / "own_program.py").write_text(OK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    three = tuple(
        queue.Entry(name, f"own_program {tries}", 2.0)
        for name, tries in (("first", 1), ("second", 2), ("third", 1))
    )
    monkeypatch.setattr(queue, "entries", lambda: three)

    def run(*flags):
        queue.main(["--run-dir", str(tmp_path / "queue"), "--results", "kept", *flags])

    return run


def test_what_fails_holds_up_nobody_and_goes_on_next_time(started, tmp_path, capsys):
    started()
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "0 of 3 done; running first (2 h); next second; about 6 h left"
    assert told[-1] == "2 of 3 done; failed second; nothing waits; about 2 h left"
    assert sorted(path.stem for path in (tmp_path / "kept").iterdir()) == ["first", "third"]
    started()
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 of 3 done; nothing waits")
    starts = (tmp_path / "queue" / "second" / "starts").read_text().splitlines()
    assert [line.endswith("--resume") for line in starts] == [False, True]
    assert len((tmp_path / "queue" / "first" / "starts").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "kept" / "second.json").read_text())["n"] == "2"


def test_its_state_starts_nothing(started, tmp_path, capsys):
    started("--state")
    assert capsys.readouterr().out.strip() == "0 of 3 done; next first; about 6 h left"
    assert not (tmp_path / "queue" / "first").exists()


def test_as_many_as_asked_for(started, tmp_path):
    started("--most", "1", "--only", "t")
    assert [path.stem for path in (tmp_path / "kept").iterdir()] == ["third"]


def test_what_a_program_of_an_old_name_made_is_done_again(started, tmp_path, capsys):
    (tmp_path / "kept").mkdir()
    for name, module in (("first", "old_program"), ("second", "own_program")):
        result = {"provenance": {"command": f"python -m {module} 1"}}
        (tmp_path / "kept" / f"{name}.json").write_text(json.dumps(result))
    started("--state")
    assert capsys.readouterr().out.strip() == "1 of 3 done; next first; about 4 h left"
    started("--most", "1")
    assert "own_program" in (tmp_path / "kept" / "first.json").read_text()
    assert not (tmp_path / "kept" / "third.json").exists()


def test_a_name_that_none_has_is_refused(started, capsys):
    with pytest.raises(SystemExit) as stop:
        started("--only", "unheard")
    assert stop.value.code == 2 and "only must be the beginning" in capsys.readouterr().err


def test_every_command_of_the_list_is_one_that_its_program_takes(monkeypatch, tmp_path):
    modules = {each.__name__: each for each in (boosted, boosted_table, minimax_defense)}
    names = [each.name for each in queue.entries()]
    assert len({*names}) == len(names) and len(names) >= 20
    for each in queue.entries():
        module, *flags = shlex.split(each.words)
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(command_line, "parse", parsed_into(seen))
            with pytest.raises(Parsed):
                modules[module].main([*flags, "--run-dir", str(tmp_path)])
        assert seen[0].seed == int(each.name.partition("seed_")[2] or 0)


class Parsed(Exception):
    """Flags that a program takes."""


def parsed_into(seen):
    parse = command_line.parse

    def parsed(*arguments, **settings):
        seen.append(parse(*arguments, **settings)[1])
        raise Parsed

    return parsed
