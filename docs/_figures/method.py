"""Draw docs/method.svg: a residual block during training, and deployed.

Example: python docs/_figures/method.py
"""

from pathlib import Path

PLAIN = 'fill="#eef1f5" stroke="#7a869a"'
TRAINING = 'fill="#fbeee8" stroke="#c2410c"'  # what folding removes
SUM_RADIUS = 11


def box(x, y, label, style, width=84, height=34):
    """Draw a box around its center."""
    corner = f'x="{x - width / 2:g}" y="{y - height / 2:g}"'
    return f'<rect {corner} width="{width}" height="{height}" rx="5" {style}/>' + text(x, y + 5, label)


def text(x, y, label, style=''):
    """Write a label, centered at x."""
    return f'<text x="{x}" y="{y}" {style}>{label}</text>'


def line(points, style='class="arrow"'):
    """Draw an arrow through points."""
    return f'<path d="M{" L".join(f"{x} {y}" for x, y in points)}" {style}/>'


def plus(x, y):
    """Draw a sum."""
    return f'<circle cx="{x}" cy="{y}" r="{SUM_RADIUS}" {PLAIN}/>' + text(x, y + 5, '+')


def block(start, norm, end, y, top):
    """Draw the parts of the block that both forms have: input, normalization, shortcut and output.

    Args:
        start (int): x of the input.
        norm (int): x of the normalization's center.
        end (int): x of the addition's center.
        y (int): y of the main path.
        top (int): y of the shortcut.

    Returns:
        list[str]: Elements of the picture.
    """
    return [
        box(norm, y, 'BatchNorm', PLAIN, width=92),
        line([(norm + 46, y), (end - SUM_RADIUS, y)]),
        line([(start, y), (start + 12, y), (start + 12, top), (end, top), (end, y - SUM_RADIUS)]),
        plus(end, y),
        line([(end + SUM_RADIUS, y), (end + 34, y)]),
    ]


def draw():
    """Return the picture as SVG."""
    y, branches = 160, {112: ('3 × 3', PLAIN), 160: ('1 × 1', TRAINING), 208: ('1 × 1, 3 × 3', TRAINING)}
    training = [
        text(216, 34, 'Training', 'class="title"'),
        *block(14, 284, 362, y, 58),
        text(124, 84, 'branches: OREPA, DBB, …', 'class="note"'),
        *(box(112, place, *labeled, width=96) for place, labeled in branches.items()),
        *(line([(26, y), (44, y), (44, place), (64, place)]) for place in branches),
        line([(160, 112), (200, 112), (200, y - SUM_RADIUS)]),
        line([(160, y), (200 - SUM_RADIUS, y)]),
        line([(160, 208), (200, 208), (200, y + SUM_RADIUS)]),
        plus(200, y),
        line([(200 + SUM_RADIUS, y), (238, y)]),
        box(150, 268, 'ψ', TRAINING, width=44),
        text(150, 304, 'learnable vector', 'class="note"'),
        line([(172, 268), (232, 268)]),
        box(284, 268, 'attention', TRAINING, width=104),
        text(284, 304, 'ASR: SE, ECA, …', 'class="note"'),
        line([(284, 251), (284, y + 17)]),
        text(346, 218, 'scale per channel', 'class="note"'),
    ]
    fold = [
        line([(432, y), (514, y)], 'class="fold"'),
        text(470, y - 16, 'fold', 'class="title"'),
        text(470, y + 28, 'same outputs', 'class="note"'),
    ]
    deployed = [
        text(662, 34, 'Deployed', 'class="title"'),
        *block(528, 676, 742, y, 108),
        box(584, y, '3 × 3', PLAIN, width=60),
        line([(540, y), (554, y)]),
        line([(614, y), (630, y)]),
        text(662, 218, 'the plain network:', 'class="note"'),
        text(662, 238, 'same speed, same code', 'class="note"'),
    ]
    return '\n'.join([HEAD, *training, *fold, *deployed, '</svg>', ''])


HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 324">
<title>A block trains with branches and attention, and deploys as plain layers with the same outputs</title>
<style>
  text { fill: #222; font: 15px Helvetica, Arial, sans-serif; text-anchor: middle }
  .title { font-size: 17px; font-weight: bold }
  .note { font-size: 14px; fill: #444 }
  rect, circle { stroke-width: 1.4 }
  path { fill: none; stroke: #444; stroke-width: 1.4 }
  .arrow { marker-end: url(#end) }
  .fold { stroke: #c2410c; stroke-width: 4; marker-end: url(#fold) }
</style>
<defs>
  <marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
    <path d="M0 0 8 4 0 8z" style="fill: #444; stroke: none"/>
  </marker>
  <marker id="fold" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="4" markerHeight="4" orient="auto">
    <path d="M0 0 8 4 0 8z" style="fill: #c2410c; stroke: none"/>
  </marker>
</defs>
<rect width="800" height="324" rx="8" fill="#fff"/>"""

if __name__ == '__main__':
    Path(__file__).parents[1].joinpath('method.svg').write_text(draw())
