"""Verifiers invert generators; nothing that is wrong is rewarded."""

import pytest
import torch

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.oracles import sudoku
from denoiserl.tasks.domains import shapes


def test_sudoku_has_288_grids_and_all_verify():
    grids = sudoku.grids()
    assert grids.shape == (288, 16)
    assert len({tuple(g) for g in grids.tolist()}) == 288
    assert bool(sudoku.valid(grids).all())


def test_sudoku_split_is_disjoint_and_seeded():
    train, test = sudoku.split(3)
    assert (len(train), len(test)) == (200, 88)
    a, b = ({tuple(g) for g in part.tolist()} for part in (train, test))
    assert not a & b and len(a | b) == 288
    assert torch.equal(sudoku.split(3)[0], train) and not torch.equal(sudoku.split(4)[0], train)


def test_sudoku_puzzles_keep_their_clues_and_count_holes():
    canvas, solution = sudoku.puzzles(sudoku.split()[0], 2000, Rng(0))
    holes = (canvas == sudoku.MASK).sum(-1)
    assert int(holes.min()) == 8 and int(holes.max()) == 12
    assert torch.equal(torch.where(canvas == sudoku.MASK, solution, canvas), solution)
    assert bool(sudoku.verify(solution, canvas).all())
    share = (canvas == sudoku.MASK).float().mean(0)  # every cell is a hole equally often
    torch.testing.assert_close(share, torch.full((16,), 10 / 16), atol=0.05, rtol=0)


def test_sudoku_verify_wants_clues_and_rules():
    canvas, solution = sudoku.puzzles(sudoku.grids(), 200, Rng(1))
    swapped = solution[:, [1, 0, *range(2, 16)]]
    assert not bool(sudoku.verify(swapped, canvas).any())
    assert not bool(sudoku.verify(canvas, canvas).any())
    other = (solution + 1) % 4  # a valid grid with other clues
    assert bool(sudoku.valid(other).all()) and not bool(sudoku.verify(other, canvas).any())
    free = torch.full_like(canvas, sudoku.MASK)
    assert bool(sudoku.verify(other, free).all())
    with pytest.raises(InvalidInputError, match="16 cells"):
        sudoku.verify(solution[:, :9], canvas[:, :9])


def test_sudoku_is_drawn():
    canvas, solution = sudoku.puzzles(sudoku.grids(), 1, Rng(0))
    drawn = sudoku.format_grid(solution[0], canvas[0])
    assert drawn.count("[") == int((canvas == sudoku.MASK).sum())
    assert sudoku.format_grid(canvas[0]).count(".") == int((canvas == sudoku.MASK).sum())

    def red(picture):
        return int(((picture[..., 0] == 200) & (picture[..., 1] == 30)).sum())

    wrong = solution[0].clone()
    wrong[0] = wrong[1]
    assert red(sudoku.picture(solution[0], canvas[0])) == 0 < red(sudoku.picture(wrong, canvas[0]))


def singles() -> torch.Tensor:
    scene = torch.zeros(9 * 16, 9, dtype=torch.int64)
    for i in range(9):
        for content in range(1, 17):
            scene[16 * i + content - 1, i] = content
    return scene


def test_parser_inverts_every_single_object():
    scene = singles()
    for levels in ((0.0, 1.0), (0.3, 0.7), (0.3, 1.0)):
        reading = shapes.parse(shapes.render(scene, *levels))
        assert torch.equal(reading.scene, scene)
        assert float(reading.residual.max()) < 1e-6


def test_parser_inverts_random_scenes_under_noise():
    scene = shapes.random_scenes(500, Rng(0), (0, 9))
    image = shapes.draw(scene, Rng(1))
    assert torch.equal(shapes.parse(image + 0.1 * Rng(2).normal(*image.shape)).scene, scene)


def test_render_puts_a_cell_where_it_belongs():
    scene = torch.zeros(9, dtype=torch.int64)
    scene[5] = shapes.content("square", "green")  # middle row, right column
    image = shapes.render(scene)
    lit = (image > 0).nonzero()
    assert set(lit[:, 0].tolist()) == {1}
    assert (int(lit[:, 1].min()), int(lit[:, 1].max())) == (4, 7)
    assert (int(lit[:, 2].min()), int(lit[:, 2].max())) == (8, 11)
    assert shapes.describe_scene(scene) == "green square middle right"


def test_prompts_are_a_code():
    scene = shapes.random_scenes(300, Rng(0), (0, 9))
    prompt = shapes.encode(scene)
    assert prompt.shape == (300, shapes.PROMPT)
    assert torch.equal(shapes.decode(prompt), scene)
    assert torch.equal(prompt.sum(-1), 9 + (scene > 0).sum(-1).float())


def test_shapes_reward_is_graded_and_strict():
    scene = torch.zeros(4, 9, dtype=torch.int64)
    red_disc, blue_bar = shapes.content("disc", "red"), shapes.content("bar", "blue")
    scene[:, 0], scene[:, 4] = red_disc, blue_bar
    prompt = shapes.encode(scene)
    drawn = scene.clone()
    drawn[1, 4] = shapes.content("bar", "red")  # wrong colour
    drawn[2, 8] = red_disc  # one too many
    drawn[3, 0], drawn[3, 1] = 0, red_disc  # wrong place
    reward = shapes.reward(shapes.render(drawn), prompt)
    assert reward["objects_found"].tolist() == [1.0, 0.5, 1.0, 0.5]
    assert reward["exact_match"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert reward["count_correct"].tolist() == [1.0, 1.0, 0.0, 1.0]


def test_shapes_off_the_manifold_is_not_rewarded():
    scene = singles()[:16]
    grey = torch.zeros(16, *shapes.EVENT)
    noise = Rng(0).normal(16, *shapes.EVENT)
    between = (shapes.render(scene) + shapes.render(scene.roll(1, 0))) / 2  # half of one, half of another
    for image in (grey, noise, between):
        assert not bool(shapes.on_manifold(image).any())
        assert float(shapes.reward(image, shapes.encode(scene))["exact_match"].sum()) == 0
    assert bool(shapes.on_manifold(shapes.render(scene)).all())


def test_shapes_diversity_falls_with_collapse():
    scene = shapes.random_scenes(20, Rng(0))[:, None].expand(20, 8, 9)
    data = shapes.draw(scene, Rng(1))
    alive = shapes.diversity(data)
    assert float(alive.mean()) == pytest.approx(0.17, abs=0.05)
    assert float(shapes.diversity(data[:, :1].expand_as(data)).max()) < 1e-3
    with pytest.raises(InvalidInputError, match="group"):
        shapes.diversity(data[:, :1])


def test_digits_held_out_judge_is_independent():
    pytest.importorskip("sklearn")
    from denoiserl.tasks.domains import digits

    (a, la), (b, lb) = digits.split_halves(0)
    assert len(a) + len(b) == 1797 and float(a.min()) == -1.0 and float(a.max()) == 1.0
    judges = digits.train_judges(0)
    assert judges.reward.accuracy(b, lb) > 0.93  # each is tested on what the other was trained on
    assert judges.held_out.accuracy(a, la) > 0.93
    wrong = digits.one_hot((lb + 1) % 10)
    assert float(judges.reward.reward(b, digits.one_hot(lb)).mean()) > float(judges.reward.reward(b, wrong).mean()) + 3
    short = [digits.train_judge(a[:100], la[:100], Rng(1), steps=3)(b) for _ in range(2)]
    assert torch.equal(*short)


def test_digit_measures():
    pytest.importorskip("sklearn")
    from denoiserl.tasks.domains import digits

    flat = torch.zeros(1, 1, 8, 8)
    assert float(digits.ink_share(flat)) == 0.5 and float(digits.ink_share(-torch.ones(1, 1, 8, 8))) == 0
