"""Reports of the Stripe Observation: statistics as JSON, pictures, and a page with both."""

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
from .figures import choose_evenly, draw_deviations, draw_stripes
from .fold_attention import AttentionReport
from .observer import STEADY, Stripes

#: Files that :func:`write_report` writes.
FILES = ('stripes.json', 'stripes.html', 'stripes_images.png', 'stripes_deviations.png')


def stripes_table(stripes: Iterable[Stripes], title: str = 'Stripes') -> Table:
    """Return a table for the terminal.

    Args:
        stripes (Iterable[Stripes]): The modules, one row each.
        title (str): Title of the table. Default: ``'Stripes'``.

    Returns:
        Table: The table.
    """
    stripes = list(stripes)
    width = min(max(len(s.name) for s in stripes), 40)
    columns = ('kind', 'channels', 'median std', f'std < {STEADY}', 'between channels')
    table = Table(Column('module', overflow='fold', min_width=width), *columns, title=title, box=SIMPLE)
    for s in stripes:
        summary = s.summary()
        cells = (
            f'{summary["median_std"]:.4f}',
            f'{summary["steady_share"]:.1%}',
            f'{summary["between_channels"]:.4f}',
        )
        table.add_row(printable(s.name), printable(s.kind), str(len(s.v.mean)), *cells)
    return table


def attention_table(report: AttentionReport) -> Table:
    """Return a table of the attention that was found, for the terminal.

    Args:
        report (AttentionReport): The report of :func:`mmasr.fold_attention`.

    Returns:
        Table: The table.
    """
    columns = ('kind', 'median std', 'effect alone', Column('constants in', overflow='fold'))
    table = Table(Column('module', overflow='fold'), *columns, title='Attention', box=SIMPLE)
    for name, module in report.modules.items():
        table.add_row(
            printable(name),
            printable(module.kind.removesuffix('Plugin')),
            f'{module.values.std.quantile(0.5):.4f}',
            '' if module.effect is None else f'{module.effect:.1e}',
            printable(module.placement or 'stays'),
        )
    return table


def check_folder(out: Path, force: bool) -> None:
    """Check early that a report can be written to a folder.

    Args:
        out (Path): The folder, which need not exist.
        force (bool): Whether an existing report may be replaced.

    Raises:
        InputError: If the path is not a folder, or contains a report and ``force`` is false.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f'{out} is not a folder')
    existing = [name for name in FILES if os.path.lexists(out / name)]
    if existing and not force:
        raise InputError(
            f'{out / existing[0]} already exists; pass `force` to replace it, or `out` to write elsewhere'
        )


def write_report(
    out: Path,
    stripes: Sequence[Stripes],
    about: dict[str, Any],
    detector: bool = False,
    chosen: Sequence[str] = (),
    force: bool = True,
) -> list[Path]:
    """Write ``stripes.json``, ``stripes.html`` and the pictures.

    The page needs no other file and no network.

    Args:
        out (Path): Folder to write to; created if it does not exist.
        stripes (Sequence[Stripes]): The attention modules.
        about (dict): Facts about the run for the top of both files: key -> value.
        detector (bool): Whether the network is a detector, for the captions. Default: False.
        chosen (Sequence[str]): Names of the modules to draw as images × channels. Default, or if none of them
            ran: up to four modules, spread evenly over the network.
        force (bool): Whether files that exist when writing starts may be replaced. Default: True.

    Returns:
        list[Path]: The files.

    Raises:
        InputError: If the files cannot be written. Then no file is written.
    """
    by_name = {s.name: s for s in stripes}
    drawn = [name for name in chosen if name in by_name] or choose_evenly(list(by_name))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: can't write here: {error.strerror}") from error
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
    statistics = json.dumps({'about': about, 'modules': [s.to_dict() for s in stripes]}, allow_nan=False)
    paths = [out / name for name in FILES]
    with temporary_files(*paths, force=force) as temporary:
        for path, content in zip(temporary, (statistics.encode(), page.encode(), *pictures), strict=True):
            path.write_bytes(content)
    return paths
