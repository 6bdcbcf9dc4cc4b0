"""What an environment answers is read right or refused by a sentence: success, rewards, spaces, resets."""

from __future__ import annotations

import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")

from gymnasium import spaces  # noqa: E402
from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402

from denoiserl.core.errors import InvalidInputError, MissingExtraError, RunError  # noqa: E402
from denoiserl.core.rng import Rng  # noqa: E402
from denoiserl.envs import Collector, evaluate  # noqa: E402
from denoiserl.envs.backends.answer import said_by_all  # noqa: E402
from denoiserl.envs.by_name import environment  # noqa: E402
from denoiserl.envs.frame_stack import ObservationHistory  # noqa: E402
from denoiserl.envs.record import record  # noqa: E402
from denoiserl.envs.remarks import Remark, remarks  # noqa: E402
from denoiserl.envs.spaces import env_spec  # noqa: E402

BOX = spaces.Box(-1.0, 1.0, (1,), np.float32)


class Late(gymnasium.Env[Any, Any]):
    """Observes its start, a number of its seed, and the tick; four ticks long. ``tell(env)`` is the info of a tick."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32), BOX

    def __init__(self, tell: Any = None, begun: Any = None, **changes: Any) -> None:
        self.tell, self.begun, self.changes = tell, begun, changes

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.start, self.k = self.np_random.uniform(-1, 1), 0
        return self.seen(), {} if self.begun is None else self.begun(self)

    def seen(self) -> Any:
        return np.array([self.start, self.k], np.float32)

    def step(self, action: Any) -> Any:
        self.k += 1
        over = self.k >= 4
        told = {"obs": self.seen(), "reward": 1.0, "terminated": over, "truncated": False, "info": {}}
        if self.tell is not None:
            told["info"] = self.tell(self)
        return tuple({**told, **{k: v(told[k]) for k, v in self.changes.items()}}.values())


def still(obs: Any, rng: Any) -> torch.Tensor:
    return torch.zeros(len(obs), 1)


def only_at_the_end(env: Late) -> dict[str, Any]:
    return {"is_success": np.bool_(env.start > 0)} if env.k == 4 else {}


def in_the_episode(env: Late) -> dict[str, Any]:
    return {"episode": {"r": 4.0, "success_once": env.start > 0}} if env.k == 4 else {}


def where_it_succeeds(env: Late) -> dict[str, Any]:
    return {"success": [True]} if env.k == 4 and env.start > 0 else {}


def owners(tell: Any, n: int = 6) -> dict[str, Any]:
    make = partial(Late, tell)
    return {"factory": make, **{m.value: SyncVectorEnv([make] * n, autoreset_mode=m) for m in AutoresetMode}}


@pytest.mark.parametrize("tell", [only_at_the_end, in_the_episode, where_it_succeeds])
@pytest.mark.parametrize("kind", ["factory", "NextStep", "SameStep", "Disabled"])
def test_success_that_is_told_only_when_an_episode_ends_reaches_the_rows(kind: str, tell: Any):
    env = owners(tell)[kind]
    ep = Collector(env, 6 if kind == "factory" else None, seed=3).collect(lambda o, r: (still(o, r), None), 23, Rng(0))
    over = ep.done & ep.valid
    assert int(over.sum()) >= 24
    assert torch.equal(ep.info["success"][over], (ep.obs[..., 0] > 0)[over])
    assert not bool(ep.info["success"][ep.valid & ~ep.done].any())
    wanted = float((ep.obs[..., 0] > 0)[over].float().mean())
    assert ep.summary()["success"] == pytest.approx(wanted) and 0 < wanted < 1


@pytest.mark.parametrize("kind", ["factory", "NextStep", "SameStep", "Disabled"])
def test_evaluations_and_recordings_hear_it_too(kind: str):
    for tell in (only_at_the_end, in_the_episode, where_it_succeeds):
        seen = evaluate(still, owners(tell, 3)[kind], 9, seed=2, num_envs=3)
        assert seen.success is not None and 0 < int(seen.success.sum()) < 9
        assert seen.first.tolist() == [4 * int(s) for s in seen.success]
        kept = record(owners(tell, 3)[kind], still, 9, seed=2, num_envs=3).demos
        assert kept.success is not None and torch.equal(kept.success, seen.success)
        assert torch.equal(kept.success, kept.observations[kept.ends - 1, 0] > 0)


def test_a_stream_that_never_hears_of_success_has_none():
    ep = Collector(Late, 2).collect(lambda o, r: (still(o, r), None), 9, Rng(0))
    assert "success" not in ep.info and "success" not in ep.summary()


def test_success_of_the_next_episodes_start_is_not_the_last_ones():
    """A SAME_STEP environment puts the info of the reset where that of the last tick was."""
    make = partial(Late, lambda env: {"success": False}, lambda env: {"success": True})
    for mode in AutoresetMode:
        with pytest.warns(Remark, match="4 of 4 episodes of SyncVectorEnv were solved before acting"):
            told = evaluate(still, SyncVectorEnv([make] * 4, autoreset_mode=mode), 4)
        assert told.success is not None and not bool(told.success.any())


def test_any_tick_the_end_and_the_first_success_are_three_things():
    def tell(env: Late) -> dict[str, Any]:
        return {"success": env.k == 2 or (env.k >= 3 and env.start > 0)}

    told = evaluate(still, partial(Late, tell), 12, seed=1)
    chunks = evaluate(lambda o, r: torch.zeros(len(o), 3, 1), partial(Late, tell), 12, seed=1)
    assert told.success is not None and bool(told.success.all()) and 0 < int(told.last_success.sum()) < 12
    assert told.outcomes["steps_to_success"].tolist() == [2.0] * 12
    assert torch.equal(told.last_success, chunks.last_success) and torch.equal(told.first, chunks.first)
    some = evaluate(still, partial(Late, lambda env: {"success": env.k == 3 and env.start > 0}), 12, seed=1)
    assert some.summary()["steps_to_success"] == 3.0 and some.outcomes["steps_to_success"].isnan().any()
    assert not bool(some.last_success.any()) and some.summary()["success"] == float(told.last_success.float().mean())


def test_starts_that_are_alike_or_not_of_their_seed_are_told():
    def remarked(make: Any) -> list[str]:
        with remarks() as said:
            evaluate(still, make, 20)
        return said

    class Deaf(Late):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return super().reset(seed=0)

    class Loose(Late):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return super().reset()

    class Few(Late):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return super().reset(seed=None if seed is None else seed % 2)

    assert [line[:23] for line in remarked(Deaf)] == ["1 distinct start of 20:"]
    assert [line[:32] for line in remarked(Loose)] == ["the same seed gives other starts"]
    assert [line[:24] for line in remarked(Few)] == ["2 distinct starts of 20:"]
    assert remarked(Late) == []


def test_remarks_let_other_warnings_through():
    with pytest.warns(DeprecationWarning, match="old"), remarks() as said:
        warnings.warn("so it is", Remark, stacklevel=1)
        warnings.warn("so it is", Remark, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert said == ["so it is"]


def test_a_recording_keeps_a_crashed_episode_as_a_failure_that_was_cut():
    def raise_(env: Late) -> dict[str, Any]:
        if env.start > 0 and env.k == 3:
            raise OSError("the wheel came off")
        return {"success": env.k >= 2}

    with pytest.warns(Remark, match="of 12 episodes of .* crashed and count as failures"):
        kept = record(partial(Late, raise_), still, 12, seed=1)
    crashed = kept.demos.observations[kept.demos.ends - 1, 0] > 0
    assert kept.demos.success is not None and torch.equal(kept.demos.success, ~crashed)
    assert kept.demos.lengths.tolist() == [2 if c else 4 for c in crashed]
    assert kept.terminated is not None and torch.equal(kept.terminated, ~crashed)


HARMLESS = {
    "reward of one element": {"reward": lambda r: np.array([r])},
    "reward as a tensor": {"reward": lambda r: torch.tensor([r])},
    "ends as NumPy's": {"terminated": np.bool_, "truncated": lambda v: np.array([v])},
    "ends as integers": {"terminated": int, "truncated": lambda v: np.int64(v)},
    "no info": {"info": lambda v: None},
    "a list": {"obs": lambda o: o.tolist()},
    "doubles": {"obs": lambda o: o.astype(np.float64)},
    "torch": {"obs": torch.from_numpy},
}


@pytest.mark.parametrize("what", HARMLESS)
def test_harmless_answers_are_read_as_what_they_mean(what: str):
    def run(**changes: Any) -> Any:
        return Collector(partial(Late, **changes), 2, seed=1).collect(lambda o, r: (still(o, r), None), 9, Rng(0))

    ours, plain = run(**HARMLESS[what]), run()
    for name in ("obs", "next_obs", "reward", "terminated", "done"):
        assert torch.equal(getattr(ours, name), getattr(plain, name)), name


REFUSED = {
    "a reward None": ({"reward": lambda r: None}, "gives a reward None: return one number"),
    "two rewards": ({"reward": lambda r: np.zeros(2)}, r"a reward ndarray of shape \[2\]: return one number"),
    "two ends": ({"terminated": lambda v: np.array([v, v])}, "gives terminated as"),
    "another shape": ({"obs": lambda o: o[:1]}, r"observations change from \[2\] to \[1\]|declares observations \[2\]"),
    "words": ({"obs": lambda o: np.array(["a", "b"])}, "observations of type <U.*: return arrays of numbers"),
    "nothing": ({"obs": lambda o: None}, "declares observations|observations change"),
    "a dict": ({"obs": lambda o: {"a": o}}, "declares observations|observations change"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_answers_that_cannot_be_read_are_refused_by_a_sentence(what: str):
    changes, said = REFUSED[what]
    for processes in (1,):
        with pytest.raises(InvalidInputError, match=said):
            Collector(partial(Late, **changes), 2, processes=processes).collect(
                lambda o, r: (still(o, r), None), 3, Rng(0)
            )
    with pytest.raises(InvalidInputError, match=said):
        evaluate(still, partial(Late, **changes), 2)


class Old:
    """The interface of gym before 0.26."""

    observation_space, action_space = Late.observation_space, BOX

    def reset(self) -> Any:
        return np.zeros(2, np.float32)

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, {}


class Alone(Old):
    def reset(self, seed: int | None = None) -> Any:
        return np.zeros(2, np.float32)


class Four(Old):
    def reset(self, seed: int | None = None) -> Any:
        return np.zeros(2, np.float32), {}


@pytest.mark.parametrize(
    ("make", "said"), [(Old, "takes no seed"), (Alone, "does not return"), (Four, "returns 4 values")]
)
def test_the_old_interface_is_refused_with_the_wrapper_to_use(make: Any, said: str):
    with pytest.raises(InvalidInputError, match=f"{said}.*gymnasium.Env.*shimmy.*GymV21Environment"):
        Collector(make, 1).collect(lambda o, r: (still(o, r), None), 1, Rng(0))


class Simple:
    """All that an environment needs: no close, no base class."""

    observation_space, action_space = Late.observation_space, BOX

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.k, self.start = 0, np.float32((seed or 0) % 1000)
        return np.array([self.start, 0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.k += 1
        return np.array([self.start, self.k], np.float32), 0.0, self.k > 2, False, {}


@pytest.mark.parametrize("copies", [1, 2])
def test_a_factory_that_returns_one_environment_again_and_again_is_refused(copies: int):
    """Each copy would move the other, and what a method learns in would be reset by its evaluation."""
    one = Simple()
    with pytest.raises(InvalidInputError, match=r"the same environment twice: make a new one in each call"):
        Collector(lambda: one, copies)


def test_close_may_be_missing_and_spaces_may_not():
    stream = Collector(Simple, 2)
    stream.collect(lambda o, r: (still(o, r), None), 4, Rng(0))
    stream.close()
    assert evaluate(still, Simple, 3).lengths.tolist() == [3, 3, 3]

    class Stuck(Simple):
        def close(self) -> None:
            raise OSError("no renderer")

    with pytest.raises(InvalidInputError, match="close of Stuck raised OSError: no renderer: repair it"):
        Collector(Stuck, 1)

    class Bare(Simple):
        observation_space = None

    with pytest.raises(InvalidInputError, match="Bare has no observation_space: an environment has reset, step"):
        Collector(Bare, 1)
    with pytest.raises(InvalidInputError, match="made a NoneType, which has no reset"):
        Collector(lambda: None, 1)


class VecEnv:
    """Named as that of stable-baselines3."""

    num_envs, observation_space, action_space = 2, Late.observation_space, BOX


class Vectors(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Does not say how it resets, as simulators on a GPU."""

    num_envs, single_observation_space, single_action_space = 2, Late.observation_space, BOX


@pytest.mark.parametrize(
    ("made", "said"), [(VecEnv, r"stable-baselines3.*Collector\(make_env"), (Vectors, "torch tensors")]
)
def test_vector_environments_of_others_are_refused_with_the_way_out(made: Any, said: str):
    with pytest.raises(InvalidInputError, match=said):
        Collector(made())


REFUSED_OBSERVATIONS = {
    "Discrete": (spaces.Discrete(7), "FlattenObservation, which makes it one-hot"),
    "MultiDiscrete": (spaces.MultiDiscrete([3, 2]), "FlattenObservation, which makes them one-hot"),
    "Tuple": (spaces.Tuple((BOX, BOX)), "FlattenObservation"),
    "Text": (spaces.Text(5), "give arrays"),
    "Sequence": (spaces.Sequence(BOX), "give arrays"),
    "Graph": (spaces.Graph(BOX, None), "give arrays"),
    "empty Dict": (spaces.Dict({}), "at least one space"),
}


@pytest.mark.parametrize("name", REFUSED_OBSERVATIONS)
@pytest.mark.parametrize("inside", [False, True])
def test_observations_are_told_by_type_and_refused_by_name(name: str, inside: bool):
    space, cure = REFUSED_OBSERVATIONS[name]
    with pytest.raises(InvalidInputError, match=f"{name}.*{'in .a.' if inside else ''}.*{cure}"):
        env_spec(spaces.Dict({"b": BOX, "a": space}) if inside else space, BOX, "Odd")


REFUSED_ACTIONS = {
    "MultiBinary": spaces.MultiBinary(4),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "Tuple": spaces.Tuple((BOX, spaces.Discrete(2))),
    "Dict": spaces.Dict({"a": BOX}),
    "Box of int64": spaces.Box(0, 10, (2,), np.int64),
    "Box of uint8": spaces.Box(0, 255, (2,), np.uint8),
}


@pytest.mark.parametrize("name", REFUSED_ACTIONS)
def test_actions_are_told_by_type_and_refused_by_name(name: str):
    with pytest.raises(InvalidInputError, match=f"acts in a {name}.*TransformAction"):
        env_spec(BOX, REFUSED_ACTIONS[name], "Odd")


def test_spaces_of_other_packages_are_told_by_the_name_of_their_class():
    """The old gym's and envpool's have the same names; a class that inherits is what its parent is."""
    Discrete = type("Discrete", (), {"n": 3, "shape": ()})
    MultiBinary = type("MultiBinary", (), {"n": 3, "shape": (3,)})
    assert env_spec(BOX, Discrete(), "x").choices == 3 and env_spec(MultiBinary(), BOX, "x").obs == (3,)
    with pytest.raises(InvalidInputError, match="acts in a MultiBinary"):
        env_spec(BOX, type("Mine", (MultiBinary,), {})(), "x")
    bounds = type("Bounds", (), {"low": -np.ones(2), "high": np.ones(2), "shape": (2,)})
    assert env_spec(bounds(), bounds(), "x").action == (2,)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (spaces.Dict({"a": BOX, "b": BOX}), "observes parts"),
        (spaces.Box(-1, 1, (), np.float32), "observes a single number"),
        (spaces.Box(-1, 1, (2, 3), np.float32), r"observes an array \[2, 3\]"),
    ],
)
def test_what_is_not_flat_says_how_it_becomes_flat(space: Any, said: str):
    class Odd(Late):
        observation_space = space

    with pytest.raises(InvalidInputError, match=f"{said}.*FlattenObservation"):
        _ = Collector(Odd, 1).obs_dim


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_actions_lie_in_the_box_in_the_boxes_own_numbers(dtype: Any):
    """0.1 as a float32 lies above 0.1 as a float64."""
    taken: list[Any] = []

    class Narrow(Late):
        action_space = spaces.Box(dtype(-0.1), dtype(0.1), (1,), dtype)

        def step(self, action: Any) -> Any:
            taken.append(action)
            return super().step(action)

    Collector(Narrow, 2).collect(lambda o, r: (torch.tensor([[3.0], [-3.0]]), None), 3, Rng(0))
    assert len(taken) == 6 and all(Narrow.action_space.contains(a) for a in taken)


@pytest.mark.parametrize(
    "act",
    [
        lambda obs: torch.zeros(len(obs), 1),
        lambda obs: np.zeros((len(obs), 1)),
        lambda obs, rng: [[0.0]] * len(obs),
        lambda obs, deterministic=True: np.full((len(obs), 1), 0.0 if deterministic is True else np.nan),
        lambda obs, rng=None: (np.zeros((len(obs), 1), np.float32), None),
    ],
)
def test_policies_that_are_functions_may_be_simple(act: Any):
    assert evaluate(act, Late, 3).returns.tolist() == [4.0] * 3
    assert record(Late, act, 3).demos.actions.shape == (12, 1)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: 0, r"act\(\) cannot be called as act\(obs, rng\), nor as act\(obs\)"),
        (7, "act is a int, and a function act.* is needed$"),
        (
            SimpleNamespace(eval_steps=None),
            r"is needed: of a policy it is denoiserl\.control\.acting\.eval_actor\(policy\)",
        ),
        (lambda obs: torch.zeros(len(obs), 3), r"takes actions \[2, 1\].*the policy gave \[2, 3\]"),
        (lambda obs: None, "the policy gave"),
        (lambda obs: "left", "the policy gave a str"),
        (lambda obs: torch.zeros(len(obs), 1, dtype=torch.complex64), "real numbers"),
    ],
)
def test_functions_that_decide_nothing_are_refused(act: Any, said: str):
    for play in (evaluate, lambda a, env, n: record(env, a, n)):
        with pytest.raises(InvalidInputError, match=said):
            play(act, Late, 2)


def test_ids_in_gymnasiums_own_spelling_are_ids(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "makers.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Made-v3', entry_point='gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=5)\n"
        "gymnasium.register('Lacking-v0', entry_point='no_such_simulator.envs:Env')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert evaluate(still, environment("makers:Made-v3"), 2).lengths.tolist() == [5, 5]
    assert evaluate(still, environment("makers:Made-v3", 3), 2).lengths.tolist() == [3, 3]
    with pytest.raises(MissingExtraError, match="pip install no-such-simulator"):
        Collector(environment("makers:Lacking-v0"), 1)
    with pytest.raises(MissingExtraError, match=r"no_such_robotics.*pip install no-such-robotics"):
        environment("no_such_robotics:FetchReach-v4")
    with pytest.raises(RunError, match=r"named with its module, gymnasium_robotics:FetchReach-v4"):
        environment("FetchReach-v4")
    with pytest.raises(RunError, match=r"^The module no_such_envs cannot be imported"):
        environment("no_such_envs:make_env")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near_by.py").write_text("")
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p not in ("", str(tmp_path))])
    with pytest.raises(RunError, match=r"give the name of the file, near_by\.py"):
        environment("near_by:make_env")


def test_meta_worlds_own_ids_are_refused_with_the_name_of_the_task():
    for word in ("Meta-World/MT1", "Meta-World/ML1-train"):
        with pytest.raises(RunError, match="metaworld:reach-v3"):
            environment(word)
        with pytest.raises(RunError, match="metaworld:reach-v3"):
            Collector(word, 1)


class Plain:
    """Gymnasium's interface without its class; ``told`` is its step after the observation, ``more`` its reset's."""

    observation_space = spaces.Box(-9, 9, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, told: Any = (1.0, True, False, {}), first: Any = ([0.5, 0.5], {})) -> None:
        self.told, self.first = told, first

    def reset(self, *, seed: int | None = None) -> Any:
        return self.first

    def step(self, action: Any) -> Any:
        return ([0.5, 0.5], *self.told)


WORDS = (
    (1.0, "False", False, {}),
    (1.0, False, "no", {}),
    (1.0, True, False, {"success": "no"}),
    (1.0, True, False, {"success": {"lift": True}}),
)


@pytest.mark.parametrize("told", WORDS)
def test_words_are_no_truths(told: Any):
    """bool("False") is True: an end, or a success, that nobody meant."""
    with pytest.raises(InvalidInputError, match=r"(terminated|truncated) as '|info reports success as"):
        evaluate(lambda obs: np.zeros((len(obs), 1)), partial(Plain, told), 2)
    known = said_by_all({"success": np.array([True, None, np.nan, 0.0], object)}, np.ones(4, bool))
    assert known is not None and known.tolist() == [1, -1, -1, 0]
    with pytest.raises(InvalidInputError, match="'no'"):
        said_by_all({"success": np.array(["no", "yes"])}, np.ones(2, bool))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_memory_takes_the_environments_that_are_taken_without_it(processes: int):
    """Lists for arrays and a reset without options; what cannot be read is refused by the same sentences."""
    seen = Collector(partial(ObservationHistory, Plain, 3), 2, processes=processes)
    assert seen.collect(lambda obs, rng: torch.zeros(2, 1), 2, Rng(0)).obs.shape == (2, 2, 6)
    seen.close()
    for first, said in (((1, 2, 3), "reset of Plain does not return"), (None, "reset of Plain does not return")):
        with pytest.raises(InvalidInputError, match=said):
            ObservationHistory(partial(Plain, first=first), 2).reset(seed=0)
    short = Collector(partial(ObservationHistory, partial(Plain, (1.0, True, {})), 2), 1)
    with pytest.raises(InvalidInputError, match="returns 4 values"):
        short.collect(lambda obs, rng: torch.zeros(1, 1), 1, Rng(0))


class Arm(Plain):
    """A bandit: one start, one tick."""

    def step(self, action: Any) -> Any:
        return [0.5, 0.5], -(float(action[0]) ** 2), True, False, {}


def test_a_bandit_is_not_told_that_it_has_one_start_while_its_draws_differ():
    def heard(act: Any, env: Any) -> list[str]:
        with remarks() as said:
            evaluate(act, env, 20)
            record(env, act, 20)
        return said

    drawn = lambda obs, rng: rng.uniform(len(obs), 1)  # noqa: E731
    assert heard(drawn, Arm) == []
    same = heard(lambda obs: np.zeros((len(obs), 1)), Arm)
    assert [line[:23] for line in same] == ["1 distinct start of 20:"], "then they are one trial"
    longer = heard(drawn, lambda: gymnasium.wrappers.TimeLimit(Walk(), 3))
    assert [line[:23] for line in longer] == ["1 distinct start of 20:"]


class Walk(gymnasium.Env[Any, Any]):
    observation_space, action_space = Plain.observation_space, Plain.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), float(action[0]), False, False, {}
