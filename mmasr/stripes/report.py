"""The Stripe Observation on paper: figures as JSON, pictures, and a page that holds both."""

import base64
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from rich.box import SIMPLE
from rich.table import Column, Table

from ..errors import InputError, printable
from ..files import temporary_files
from .figures import choose, draw_deviations, draw_stripes
from .observer import STEADY, Stripes

#: What :func:`write_report` writes.
FILES = ('stripes.json', 'stripes.html', 'stripes_images.png', 'stripes_deviations.png')


def stripes_table(stripes: Iterable[Stripes], title: str = 'Stripes') -> Table:
    """The modules' figures as a table for the terminal."""
    stripes = list(stripes)
    width = min(max(len(s.name) for s in stripes), 40)
    columns = ('kind', 'channels', 'median std', f'std < {STEADY}', 'between channels')
    table = Table(Column('module', overflow='fold', min_width=width), *columns, title=title, box=SIMPLE)
    for s in stripes:
        found = s.summary()
        figures = f'{found["median_std"]:.4f}', f'{found["steady_share"]:.1%}', f'{found["between_channels"]:.4f}'
        table.add_row(printable(s.name), printable(s.kind), str(len(s.v.mean)), *figures)
    return table


def check_folder(out: Path, force: bool) -> None:
    """Refuse a folder to write to early.

    Raises:
        InputError: If it can't be one, or a report is there and ``force`` is not given.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f'{out} is no folder')
    there = [name for name in FILES if os.path.lexists(out / name)]
    if there and not force:
        raise InputError(f'{out / there[0]} is there already; pass `force` to replace it, or `out` for another place')


def write_report(
    out: Path,
    stripes: Sequence[Stripes],
    about: dict[str, Any],
    detector: bool = False,
    chosen: Sequence[str] = (),
    force: bool = True,
) -> list[Path]:
    """Write ``stripes.json``, ``stripes.html`` (which needs no other file and no network) and the pictures.

    Args:
        out (Path): Folder to write to; made if it is missing.
        stripes (Sequence[Stripes]): One for each attention module.
        about (dict): What was run on what, for the head of both files.
        detector (bool): Whether the network is a detector, for the captions. Default: False.
        chosen (Sequence[str]): Names of the modules whose images × channels are drawn. Default, or if none of them ran: up to
            four, spread evenly over the network.
        force (bool): Whether what is there by then may be replaced. Default: True.

    Returns:
        list[Path]: The files.

    Raises:
        InputError: If the files can't be written; then none is.
    """
    by_name = {s.name: s for s in stripes}
    drawn = [name for name in chosen if name in by_name] or choose(list(by_name))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: can't write here: {error.strerror}") from None
    figures = draw_stripes([by_name[name] for name in drawn]), draw_deviations(stripes)
    pictures = []
    for figure in figures:
        with io.BytesIO() as file:
            figure.savefig(file, format='png')
            pictures.append(file.getvalue())
    environment = jinja2.Environment(loader=jinja2.PackageLoader('mmasr.stripes', ''), autoescape=True)
    page = environment.get_template('page.html').render(
        about=about,
        detector=detector,
        pictures=[base64.b64encode(picture).decode() for picture in pictures],
        modules=[{'name': s.name, 'kind': s.kind, 'channels': len(s.v.mean), **s.summary()} for s in stripes],
        spatial=[s.name for s in stripes if s.spatial],
    )
    figures_json = json.dumps({'about': about, 'modules': [s.to_dict() for s in stripes]}, allow_nan=False)
    paths = [out / name for name in FILES]
    with temporary_files(*paths, force=force) as temporary:
        for path, content in zip(temporary, (figures_json.encode(), page.encode(), *pictures), strict=True):
            path.write_bytes(content)
    return paths
