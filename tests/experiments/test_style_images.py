"""Photographs and style images."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmasr.experiments.style_images import draw_style, find_photographs, read_image


def write(path, width=40, height=30):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_an_image_keeps_its_shape_in_multiples_of_four(tmp_path):
    write(tmp_path / 'a.png', 100, 61)
    image = read_image(tmp_path / 'a.png', 32)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 32, 52)  # 100 / 61 * 32 = 52.5


def test_an_image_of_the_right_size_is_read_unchanged(tmp_path):
    pixels = write(tmp_path / 'a.png', 40, 32)
    assert np.array_equal(read_image(tmp_path / 'a.png', 32).permute(1, 2, 0), pixels)


def test_images_are_turned_as_the_camera_says_and_gray_ones_become_rgb(tmp_path):
    image = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8), (32, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    image.save(tmp_path / 'a.png', exif=exif)
    found = read_image(tmp_path / 'a.png', 32)
    assert found.shape == (3, 40, 32)
    assert torch.equal(found[0, :, 0], torch.arange(40, dtype=torch.uint8))


def test_the_photographs_are_split_by_name(tmp_path):
    for number in range(12):
        write(tmp_path / f'{number:02d}.JPG' if number else tmp_path / '00.png')
    (tmp_path / 'notes.txt').write_text('')
    train, held_out = find_photographs(tmp_path)
    assert [path.stem for path in held_out] == ['04', '09']
    assert len(train) == 10
    train, held_out = find_photographs(tmp_path, ['00.png', '11.JPG'])
    assert [path.name for path in held_out] == ['00.png', '11.JPG']
    assert {path.name for path in train}.isdisjoint({'00.png', '11.JPG'})
    assert len(train) == 10


def test_a_few_photographs_are_split_too(tmp_path):
    for name in 'ab':
        write(tmp_path / f'{name}.png')
    assert find_photographs(tmp_path) == ([tmp_path / 'a.png'], [tmp_path / 'b.png'])


@pytest.mark.parametrize(
    ('held_out', 'message'),
    [
        (['c.png'], '`held_out` c.png: no such image'),
        (['a.png', 'b.png'], '`held_out` names all images'),
    ],
)
def test_an_unusable_split_is_rejected(held_out, message, tmp_path):
    for name in 'ab':
        write(tmp_path / f'{name}.png')
    with pytest.raises(ValueError, match=message):
        find_photographs(tmp_path, held_out)


def test_the_drawn_style_image_has_texture_and_depends_on_the_seed():
    image = draw_style(32)
    assert image.shape == (3, 32, 32)
    assert torch.equal(image, draw_style(32))
    assert not torch.equal(image, draw_style(32, seed=1))
    assert image.float().diff().abs().mean() > 20  # a smooth image, or one of noise reduced to gray, has less
