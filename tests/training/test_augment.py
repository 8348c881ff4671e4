import numpy as np
import pytest
import torch

from pgn_client.errors import ConfigurationError
from pgn_client.training import augment

RAMP = (
    torch.arange(12 * 12 * 3).view(1, 12, 12, 3).permute(0, 3, 1, 2).remainder(251).to(torch.uint8)
)


def many(name, n=400, picture=RAMP):
    torch.manual_seed(0)
    return torch.cat([augment.get(name)(x) for x in picture.expand(n, -1, -1, -1).split(10)])


def shifted(picture):
    """All the moves by at most one pixel of a 12-pixel image, as bytes: NumPy, edge repeated."""
    array = picture[0].numpy()
    rows = [np.clip(np.arange(12) + d, 0, 11) for d in (-1, 0, 1)]
    return {array[:, r][:, :, c].tobytes() for r in rows for c in rows}


def seen(pictures):
    return {p.contiguous().numpy().tobytes() for p in pictures}


@pytest.mark.parametrize("name", augment.REGISTRY)
@pytest.mark.parametrize("box", [(16, 16), (24, 32)])
def test_whole_grey_values_stay_and_so_do_shapes(name, box):
    pictures = torch.randint(0, 256, (6, 3, *box), dtype=torch.uint8)
    found = augment.get(name)(pictures)
    assert (found.dtype, found.shape) == (torch.uint8, pictures.shape)


@pytest.mark.parametrize("name", augment.REGISTRY)
def test_the_seed_decides(name):
    assert torch.equal(many(name, 20), many(name, 20))


@pytest.mark.parametrize("name", [n for n in augment.REGISTRY if n != "none"])
def test_copies_of_a_picture_come_out_different(name):
    assert len(seen(many(name, 20))) > 1


@pytest.mark.parametrize("name", augment.REGISTRY)
def test_the_pictures_given_stay_as_they_are(name):
    before = RAMP.repeat(8, 1, 1, 1)
    augment.get(name)(before)
    assert (before == RAMP).all()


def test_none_changes_nothing():
    assert (many("none", 3) == RAMP).all()


def test_shift_moves_and_never_flips():
    assert seen(many("shift")) == shifted(RAMP)


def test_flip_moves_and_mirrors_left_to_right():
    mirrored = {
        np.frombuffer(p, np.uint8).reshape(3, 12, 12)[:, :, ::-1].tobytes() for p in shifted(RAMP)
    }
    assert not mirrored & shifted(RAMP)
    assert seen(many("flip")) == mirrored | shifted(RAMP)


def test_flip_mirrors_half():
    original = shifted(RAMP)
    share = np.mean([p.contiguous().numpy().tobytes() in original for p in many("flip")])
    assert share == pytest.approx(0.5, abs=0.1)  # four standard deviations of 400 coins


def orientations(pictures, flat):
    """How often each of the eight turned and mirrored forms of a flat-coloured corner image
    occurs.
    """
    forms = [np.rot90(f, k, (1, 2)) for k in range(4) for f in (flat, flat[:, :, ::-1])]
    return [sum(np.abs(p - f.astype(int)).mean() < 20 for p in pictures) for f in forms]


def test_dihedral_reaches_all_eight_orientations():
    picture = np.zeros((3, 24, 24), np.uint8)
    picture[0, :12], picture[1, :, :12], picture[2, 4:8, 4:8] = 250, 250, 250
    picture[2, 4:8, 14:18] = 120
    found = many("dihedral", 200, torch.from_numpy(picture)[None]).numpy().astype(int)
    assert min(orientations(found, picture)) > 5  # 25 each on average


def test_dihedral_turns_no_oblong_picture_on_its_side():
    oblong = torch.zeros(1, 3, 12, 24, dtype=torch.uint8)
    oblong[..., :4, :8] = 200
    bright = many("dihedral", 100, oblong)[:, 0].float()
    assert {(i, j) for i in (0, -1) for j in (0, -1) if bright[:, i, j].max() > 0} == {
        (0, 0),
        (0, -1),
        (-1, 0),
        (-1, -1),
    }
    assert ((bright > 0).sum(2).amax(1) > (bright > 0).sum(1).amax(1)).all()  # each lies as it lay


def test_paper_changes_colours_too():
    grey = torch.full((1, 3, 12, 12), 90, dtype=torch.uint8)
    assert len({p.float().mean().item() for p in many("paper", 20, grey)}) > 5


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(ConfigurationError, match=r"'turn'.*none, shift, flip, dihedral, paper"):
        augment.get("turn")
