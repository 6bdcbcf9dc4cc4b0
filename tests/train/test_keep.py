"""Loops that are left, limited and resumed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import numpy
import pytest
import torch

from denoiserl.core.counters import count_usage
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.core.serialization import store
from denoiserl.train.run_state import Run, Stopped
from denoiserl.train.saved_state import find_saved_policy


class Counter:
    """Something with a state: a sum of draws from the global generators."""

    def __init__(self):
        self.value = 0.0

    def draw(self):
        self.value += torch.rand(()).item() + numpy.random.rand() + random.random()
        return self.value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]

    def save(self, path):
        store.write(path, self.state_dict())


class Simulator:
    """Something without: it drifts on, and only a border brings it back."""

    def __init__(self):
        self.at, self.borders = 0.0, []

    def on_checkpoint(self, iteration):
        self.at = float(iteration)
        self.borders.append(iteration)

    def move(self):
        self.at += 0.1
        return self.at


def some(keep, n=20, leave=None, **more):
    """A run; ``leave``: walk away inside of this iteration."""
    torch.manual_seed(0), numpy.random.seed(0), random.seed(0)
    counter, world, told = Counter(), Simulator(), []
    for it in keep.loop(n, counter=counter, world=world, **more):
        told.append((it, counter.draw(), world.move()))
        if it == leave:
            break
    return told, world.borders


@pytest.mark.parametrize("leave", [0, 3, 4, 5, 13, 19])
def test_a_left_loop_goes_on_as_if_it_had_never_been_left(tmp_path, leave):
    whole, borders = some(Run(every=5, restart=5))
    assert borders == [0, 5, 10, 15, 20]
    some(Run(tmp_path, every=5, restart=5), leave=leave)
    rest, after = some(Run(tmp_path, every=5, restart=5))
    assert rest == whole[leave // 5 * 5 :] and after == borders[leave // 5 :]
    nothing, last = some(Run(tmp_path, every=5, restart=5))
    assert nothing == [] and last == [20]


@pytest.mark.parametrize("restart", [None, 4, 7])
def test_saves_change_no_numbers(tmp_path, restart):
    """Whatever the interval of saves, also with a thing that starts afresh."""
    whole = some(Run(restart=restart), 40)
    for every in (1, 3, 20, None):
        assert some(Run(tmp_path / str(every), every=every, restart=restart), 40) == whole
    assert some(Run(every=1, restart=restart), 40) == whole


@pytest.mark.parametrize(("every", "restart"), [(1, 5), (3, 5), (7, 2), (40, 3)])
@pytest.mark.parametrize("leave", [0, 6, 13, 19])
def test_a_loop_that_starts_afresh_goes_on_from_a_border(tmp_path, every, restart, leave):
    whole, borders = some(Run(restart=restart))
    some(Run(tmp_path, every=every, restart=restart), leave=leave)
    rest, after = some(Run(tmp_path, every=every, restart=restart))
    first = after[0]
    assert rest == whole[first:] and after == [b for b in borders if b >= first]
    assert leave - first < every + restart, "a stop loses no more than an interval of each kind"


class Player(Simulator):
    """It says itself when it may start afresh: after seven moves."""

    moves = 0

    def on_checkpoint(self, iteration):
        super().on_checkpoint(iteration)
        self.moves = 0

    def move(self):
        self.moves += 1
        return super().move()

    def may_restart(self):
        return self.moves >= 7


def test_a_thing_that_says_when_it_may_start_afresh_is_asked(tmp_path):
    def play(keep, n=30, leave=None):
        counter, world, other, told = Counter(), Player(), Simulator(), []
        for it in keep.loop(n, counter=counter, world=world, other=other):
            told.append((it, world.move(), other.move()))
            if it == leave:
                break
        return told, world.borders, other.borders

    whole, *borders = play(Run(every=2))
    assert borders == [[0, 7, 14, 21, 28, 30]] * 2
    play(Run(tmp_path, every=2), leave=26)
    rest, *after = play(Run(tmp_path, every=2))
    assert rest == whole[21:] and after == [[21, 28, 30]] * 2


def test_without_an_interval_a_minute_is_one(tmp_path, monkeypatch):
    """What a stop loses must not grow with the run."""
    monkeypatch.setattr("denoiserl.train.run_state.SOON", 0.0)
    some(Run(tmp_path / "soon", restart=2), 1000, leave=5)
    assert next(Run(tmp_path / "soon", restart=2).loop(1000, counter=Counter(), world=Simulator())) == 4
    some(Run(tmp_path / "given", every=100, restart=2), 1000, leave=5)
    assert next(Run(tmp_path / "given", restart=2).loop(1000, counter=Counter(), world=Simulator())) == 0


def test_a_loop_that_goes_on_leaves_nothing_of_a_killed_save(tmp_path):
    some(Run(tmp_path, every=5, restart=5), leave=11)
    shutil.copytree(tmp_path / "state", tmp_path / ".state.old")
    shutil.copytree(tmp_path / "state", tmp_path / ".best.new")
    list(Run(tmp_path).loop(20, counter=Counter(), world=Simulator()))
    nothing, _ = some(Run(tmp_path, every=5, restart=5))
    assert not nothing and sorted(p.name for p in tmp_path.iterdir()) == ["state"]


def test_a_budget_ends_the_loop_at_the_first_border_that_reaches_it(tmp_path):
    def loop(keep, n=100):
        done = []
        for it in keep.loop(n, counter=Counter()):
            count_usage("env_steps", 30)
            done.append(it)
        return done

    assert loop(Run(budget={"env_steps": 90})) == [0, 1, 2]
    assert loop(Run(budget={"env_steps": 91})) == [0, 1, 2, 3]
    keep = Run(tmp_path, budget={"env_steps": 150})
    assert loop(keep.stage("a"), 2) == [0, 1]
    assert loop(keep.stage("b"), None) == [0, 1, 2]  # what is left of the run's budget
    assert loop(keep.stage("c")) == [] and keep.usage()["env_steps"] == 150
    more = Run(tmp_path, budget={"env_steps": 200})  # another process with more to spend
    assert loop(more.stage("a"), 2) == [] and loop(more.stage("b"), None) == [3, 4]
    assert more.usage()["env_steps"] == 210
    assert loop(Run().stage("d", budget={"env_steps": 30})) == [0]


def test_a_budget_of_seconds_survives_a_resume(tmp_path):
    def loop(leave=None):
        keep, done = Run(tmp_path, every=1, budget={"seconds": 0.2}), []
        for it in keep.loop(None, counter=Counter()):
            time.sleep(0.02)
            done.append(it)
            if it == leave:
                break
        return done, keep.seconds

    loop(leave=3)
    done, seconds = loop()
    assert seconds >= 0.2 and done[0] <= 3 and done[-1] < 10  # ten sleeps fill it, those of the first process included


def test_budgets_and_loops_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(RunError, match="Did you mean 'env_steps'"):
        Run(budget={"env steps": 3})
    with pytest.raises(RunError, match="budget seconds = 0 is out of range"):
        Run(budget={"seconds": 0})
    with pytest.raises(RunError, match="needs a budget"):
        next(Run().loop(None))
    with pytest.raises(RunError, match=r"'envs' .*on_checkpoint"):
        next(Run().loop(3, envs=object()))
    for name in ("best", "../up", ""):
        with pytest.raises(RunError, match="cannot name a stage"):
            Run().stage(name)
    keep = Run(tmp_path)
    list(keep.loop(1))
    with pytest.raises(RunError, match="has run already"):
        next(keep.loop(1))


def test_another_set_of_names_or_shapes_is_refused(tmp_path):
    list(Run(tmp_path).loop(2, net=torch.nn.Linear(2, 2), rng=Rng(0)))
    with pytest.raises(RunError, match="file: net; only in the loop: policy"):
        next(Run(tmp_path).loop(2, policy=torch.nn.Linear(2, 2), rng=Rng(0)))
    with pytest.raises(RunError, match=r"'net' does not fit"):
        next(Run(tmp_path).loop(2, net=torch.nn.Linear(2, 3), rng=Rng(0)))
    with pytest.raises(RunError, match="more than 1"):
        next(Run(tmp_path).loop(1, net=torch.nn.Linear(2, 2), rng=Rng(0)))
    store.write(tmp_path / "state", {"weights": 1})
    with pytest.raises(RunError, match="not the state of a loop"):
        next(Run(tmp_path).loop(2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_iteration_saves_and_says_so(tmp_path, number):
    usual, done = signal.getsignal(number), []

    def loop():
        counter = Counter()
        for it in Run(tmp_path, every=10).loop(20, counter=counter):
            if it == 3 and not done[3:]:
                os.kill(os.getpid(), number)
            counter.value += 1
            done.append((it, counter.value))

    with pytest.raises(Stopped, match="4 of 20 iterations") as stop:
        loop()
    assert stop.value.number == number and signal.getsignal(number) is usual
    loop()
    assert done == [(i, i + 1) for i in range(20)] and signal.getsignal(number) is usual


def test_an_interrupt_with_a_border_goes_back_to_it(tmp_path):
    told = []
    with pytest.raises(Stopped, match="5 of 20"):
        counter, world = Counter(), Simulator()
        for it in Run(tmp_path, every=5, restart=5).loop(20, counter=counter, world=world):
            if it == 7:
                os.kill(os.getpid(), signal.SIGINT)
            told.append(it)
    assert told[-1] == 7 and next(Run(tmp_path, every=5, restart=5).loop(20, counter=counter, world=world)) == 5


def test_a_second_interrupt_is_immediate(tmp_path):
    counter = Counter()
    with pytest.raises(KeyboardInterrupt) as stop:
        for _ in Run(tmp_path).loop(20, counter=counter):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second one was not heard")
    assert not isinstance(stop.value, Stopped)


def test_the_best_policy_and_its_score_survive(tmp_path):
    scores = [1.0, 3.0, 2.0, 2.5, 2.9, 3.5, 0.0, 3.5]

    def loop(leave=None):
        policy, taken = Counter(), []
        keep = Run(tmp_path, every=2)
        for it in keep.loop(len(scores), policy=policy):
            policy.value = scores[it]
            if keep.best(policy, scores[it]):
                taken.append(it)
            if it == leave:
                return taken
        keep.save_last(policy)
        return taken

    assert loop(leave=4) == [0, 1]
    assert loop() == [5]  # the 2.9 after the resume is no record
    assert (
        store.read(find_saved_policy(tmp_path))["value"] == 3.5
        and store.read(find_saved_policy(tmp_path, "last"))["value"] == 3.5
    )
    with pytest.raises(InvalidInputError, match="nan"):
        Run().best(Counter(), float("nan"))
    with pytest.raises(RunError, match="no policy 'first'"):
        find_saved_policy(tmp_path, "first")


def test_the_best_in_memory_starts_anew_with_each_loop():
    keep = Run()  # as a default argument, one object serves many runs
    for _ in range(2):
        assert [keep.best(Counter(), s) for it in keep.loop(3) for s in [float(it % 2)]] == [True, True, False]
