"""What goes into a store comes out of it, whole or not at all."""

from __future__ import annotations

import math
import shutil
import time
from collections import OrderedDict

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn),
]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.cpu().double().nan_to_num(7), b.double().nan_to_num(7))
        )
    if isinstance(a, dict):
        return list(a) == list(b) and [type(k) for k in a] == [type(k) for k in b] and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.integers(0, 3).map(lambda n: torch.arange(n)),
)
key = st.one_of(st.text(max_size=4), st.integers(), st.none(), st.booleans())
trees = st.recursive(
    leaf,
    lambda t: st.one_of(
        st.lists(t, max_size=3), st.lists(t, max_size=3).map(tuple), st.dictionaries(key, t, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(trees)
def test_any_tree_comes_back(tmp_path_factory, tree):
    path = store.write(tmp_path_factory.mktemp("store") / "t", tree)
    assert same(tree, store.read(path))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_layout_comes_back(tmp_path, dtype):
    base = (torch.arange(24).reshape(4, 6) % 2).to(dtype)
    tree = {"whole": base, "columns": base[:, ::2], "turned": base.T, "none": base[:0], "one": base[1, 1]}
    back = store.read(store.write(tmp_path / "t", tree))
    for name, value in tree.items():
        assert back[name].dtype == dtype and back[name].shape == value.shape
        assert back[name].tolist() == value.tolist() if dtype != torch.float8_e4m3fn else True
        assert back[name].float().tolist() == value.float().tolist() if not dtype.is_complex else True


def test_shared_tensors_are_stored_once_and_stay_shared(tmp_path):
    big = torch.randn(1000)
    path = store.write(tmp_path / "t", {"a": big, "b": [big], "part": big[:10]})
    assert (path / store.TENSORS).stat().st_size < 1.2 * 4 * 1000
    back = store.read(path)
    assert back["a"] is back["b"][0] and torch.equal(back["part"], big[:10])


def test_conjugates_and_negatives_are_not_confused(tmp_path):
    z = torch.randn(5, dtype=torch.complex64)
    tree = {"z": z, "conj": z.conj(), "imag": z.conj().imag, "again": torch.randn(5, dtype=torch.complex64).conj()}
    back = store.read(store.write(tmp_path / "t", tree))
    assert all(torch.equal(back[k], v.resolve_conj().resolve_neg()) for k, v in tree.items())


def test_names_that_collide_in_the_file_do_not_in_the_tree(tmp_path):
    tree = {"a": {"b.c": torch.zeros(1)}, "a.b": {"c": torch.ones(1)}, "__metadata__": torch.full((1,), 2.0)}
    back = store.read(store.write(tmp_path / "t", tree))
    assert [back["a"]["b.c"].item(), back["a.b"]["c"].item(), back["__metadata__"].item()] == [0, 1, 2]


def test_an_optimiser_goes_on_from_its_stored_state(tmp_path):
    def some(n, state=None):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)
        opt = torch.optim.AdamW(net.parameters(), 0.1)
        if state is not None:
            net.load_state_dict(state["net"])
            opt.load_state_dict(state["opt"])
        for _ in range(n):
            opt.zero_grad()
            net(torch.ones(4, 3)).square().sum().backward()
            opt.step()
        return {"net": net.state_dict(), "opt": opt.state_dict()}

    back = store.read(store.write(tmp_path / "t", some(3)))
    assert torch.equal(some(4, back)["net"]["weight"], some(7)["net"]["weight"])


def test_numpy_scalars_become_numbers_and_the_rest_is_refused_with_its_place(tmp_path):
    back = store.read(store.write(tmp_path / "t", {"x": numpy.float32(0.1), "n": numpy.int64(3), numpy.int64(4): True}))
    assert back == {"x": float(numpy.float32(0.1)), "n": 3, 4: True} and type(back["n"]) is int
    assert type(store.read(store.write(tmp_path / "o", OrderedDict(a=1)))) is dict
    for bad, said in (
        ({"a": [1, numpy.ones(2)]}, r"'a\.1' is a ndarray.*from_numpy"),
        ({"a": {1, 2}}, "'a' is a set"),
        ({("a", "b"): 1}, "the key"),
        (torch.ones(2, 2).to_sparse(), "dense"),
    ):
        with pytest.raises(RunError, match=said):
            store.write(tmp_path / "bad", bad)
    assert not (tmp_path / "bad").exists()


def test_every_truncation_of_either_file_is_refused_by_name(tmp_path):
    path = store.write(tmp_path / "t", {"w": torch.randn(50), "n": math.inf, "d": {1: (2, "three")}})
    whole = {name: (path / name).read_bytes() for name in (store.TREE, store.TENSORS)}
    for name, content in whole.items():
        for length in sorted({*range(0, len(content), 7), len(content) - 1}):
            (path / name).write_bytes(content[:length])
            ours = name == store.TENSORS or length >= len(store.MARK)
            with pytest.raises(RunError, match=f"{name}.*delete" if ours else f"not a folder that .* wrote.*{name}"):
                store.read(path)
        for at in (5, len(content) // 2, len(content) - 2):  # one flipped bit
            (path / name).write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
            with pytest.raises(RunError, match=name):
                store.read(path)
        (path / name).unlink()
        with pytest.raises(RunError, match=f"{name} is missing"):
            store.read(path)
        (path / "notes.txt").touch()
        with pytest.raises(RunError, match=f"{name} is missing") as said:
            store.read(path)
        assert "delete" not in str(said.value), "the folder holds more than what is stored here"
        (path / "notes.txt").unlink()
        (path / name).write_bytes(content)
    assert store.read(path)["d"] == {1: (2, "three")}


def test_foreign_folders_are_neither_read_nor_replaced(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "tree.json").write_text('{"a": 1}')
    with pytest.raises(RunError, match="not written by denoiserl"):
        store.read(tmp_path / "notes")
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"thesis\.txt"):
        store.write(tmp_path / "notes", {})
    with pytest.raises(RunError, match="does not exist"):
        store.read(tmp_path / "nowhere")
    path = store.write(tmp_path / "t", {})
    (path / "tree.json").write_text((path / "tree.json").read_text().replace('"version":1', '"version":2'))
    with pytest.raises(RunError, match="version 2"):
        store.read(path)


def test_what_others_wrote_is_never_advised_to_be_deleted(tmp_path):
    """Folders of other programs, single files, and names that are ours with other contents."""
    (tmp_path / "zarr" / "data").mkdir(parents=True)
    (tmp_path / "zarr" / ".zgroup").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "tensors.safetensors").write_bytes(b"weights")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "tree.json").write_text('{"leaves": ')
    (tmp_path / "policy.ckpt").write_bytes(b"PK")
    before = sorted(p for p in tmp_path.rglob("*"))
    for name in ("zarr", "empty", "model", "theirs", "half", "policy.ckpt"):
        for open_ in (store.read, store.read_structure):
            with pytest.raises(RunError, match="not a folder that denoiserl wrote") as said:
                open_(tmp_path / name)
            assert "delete" not in str(said.value) and name in str(said.value)
    for name in ("theirs", "half", "model"):
        with pytest.raises(RunError, match="which a save would delete"):
            store.write(tmp_path / name, {})
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_what_killed_writers_left_is_gone_at_the_next_opening(tmp_path):
    """Killed before either rename, between both, after the second, and while JSON was written."""
    for name in ("before", "between", "after"):
        store.write(tmp_path / name, {"n": name})
    shutil.copytree(tmp_path / "before", tmp_path / ".before.new")
    (tmp_path / ".before.new" / "tree.json").unlink()
    (tmp_path / "between").rename(tmp_path / ".between.old")
    shutil.copytree(tmp_path / ".between.old", tmp_path / ".between.new")
    shutil.copytree(tmp_path / "after", tmp_path / ".after.old")
    (tmp_path / ".run.json.new").write_text("{")
    (tmp_path / ".mine.old").mkdir()
    (tmp_path / ".mine.old" / "thesis.txt").touch()
    store.remove_partial_writes(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine.old", "after", "before", "between"]
    assert all(store.read(tmp_path / name) == {"n": name} for name in ("before", "between", "after"))


def test_a_writer_killed_between_its_renames_leaves_the_old_tree(tmp_path):
    path = store.write(tmp_path / "t", {"n": 1})
    path.rename(tmp_path / ".t.old")
    assert store.exists(path) and store.read(path) == {"n": 1} and store.read_structure(path) == {"n": 1}
    store.write(path, {"n": 2})
    assert store.read(path) == {"n": 2} and sorted(p.name for p in tmp_path.iterdir()) == ["t"]


def test_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path, start):
    path = store.write(tmp_path / "t", {"n": 0, "w": torch.zeros(1000)})
    script = tmp_path / "writer.py"
    script.write_text(
        "import torch\nfrom denoiserl.core.serialization import store\ntorch.set_num_threads(1)\n"
        f"n = store.read({str(path)!r})['n']\n"
        f"while True:\n    n += 1\n    store.write({str(path)!r}, dict(n=n, w=torch.full((1000,), float(n))))\n"
    )
    before = 0
    for trial in range(8):
        writer = start(script)
        while store.read_structure(path)["n"] == before:
            time.sleep(0.002)
        time.sleep(0.0013 * trial)
        writer.kill()
        writer.join()
        tree = store.read(path)
        assert tree["n"] > before and torch.equal(tree["w"], torch.full((1000,), float(tree["n"])))
        before = tree["n"]
    store.write(path, {"n": -1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t", "writer.py"]
