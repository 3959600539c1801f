"""Build steps of the documentation site (mkdocs.yml).

The pages in docs/ are plain Markdown with relative links, so that they also read well on a Git host. Here
they get the pages that exist outside docs/, and the reference pages, which are generated.
"""

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from unittest import mock

import griffe
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mmasr.__main__ import TOOLS, main

ROOT = Path(__file__).parents[2]
LOG = logging.getLogger('mkdocs.hooks')  # its warnings make a strict build fail

#: Pages outside docs/: file in the repository -> page of the site.
PAGES = {
    'README.md': 'index.md',
    'configs/README.md': 'reference/configs.md',
    'tools/README.md': 'reference/tools.md',
    'CHANGELOG.md': 'project/changelog.md',
    'CONTRIBUTING.md': 'project/contributing.md',
    'SECURITY.md': 'project/security.md',
}
API = yaml.safe_load((Path(__file__).parent / 'api.yml').read_text())

#: A link, whose text may contain code; or code, in which nothing is a link.
LINK_OR_CODE = re.compile(
    r'(?P<image>!?)\[(?P<text>(?:`[^`]*`|[^\]`])*)\]\((?P<target>[^)\s]+)\)'
    r'|^ *(?P<fence>```+).*?^ *(?P=fence) *$|`[^`\n]+`',
    re.MULTILINE | re.DOTALL,
)
ROLE = re.compile(r':[a-z]+:`~?([\w.]+)`')


def on_config(config: MkDocsConfig) -> None:
    """Expand patterns in the navigation, such as ``cards/*.md``."""
    config.nav = _expanded(config.nav)


def _expanded(nav: list) -> list:
    docs, found = ROOT / 'docs', []
    for item in nav:
        if isinstance(item, str) and '*' in item:
            found += sorted(str(path.relative_to(docs)) for path in docs.glob(item))
        elif isinstance(item, dict):
            found += [
                {title: _expanded(value) if isinstance(value, list) else value}
                for title, value in item.items()
            ]
        else:
            found.append(item)
    return found


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages outside docs/, the help of the tools, and the pages of the API."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, 'reference/help.md', content=_help_page()))
    for name, about in API.items():
        options = '' if about.get('members', True) else '\n    options: {members: false}'
        documented = [f'::: {path}{options}' for path in about['objects']]
        text = '\n\n'.join([f'# {about["title"]}', about['introduction'], *documented])
        files.append(File.generated(config, f'reference/api/{name}.md', content=text))


def _help_page() -> str:
    """Return a page with the output of ``--help`` of every tool."""
    lines = ['# Options of the tools', '`mmasr train` and `python tools/train.py` are the same.']
    for tool in TOOLS:
        output = io.StringIO()
        with (
            mock.patch.object(sys, 'argv', ['mmasr', tool, '--help']),
            mock.patch.dict(os.environ, COLUMNS='90'),
            contextlib.redirect_stdout(output),
            contextlib.suppress(SystemExit),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter('ignore')
            main()
        _, usage, text = output.getvalue().partition('usage: ')  # other packages print before it
        lines += [f'## {tool}', f'```text\n{usage}{text}```']
    return '\n\n'.join(lines)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between the repository's files into links between the pages of the site."""
    sources = {page: source for source, page in PAGES.items()}
    here = sources.get(page.file.src_uri, f'docs/{page.file.src_uri}')
    folder = os.path.dirname(page.file.src_uri)

    def rewritten(link: re.Match) -> str:
        path, _, anchor = (link['target'] or '').partition('#')
        if not path or ':' in path:
            return link[0]
        target = os.path.normpath(os.path.join(os.path.dirname(here), path))
        inside = PAGES.get(target) or (target.startswith('docs/') and target.removeprefix('docs/'))
        if inside:
            relative = os.path.relpath(inside, folder) + (f'#{anchor}' if anchor else '')
            return f'{link["image"]}[{link["text"]}]({relative})'  # MkDocs checks it
        if not (ROOT / target).exists():
            LOG.warning('%s: %s does not exist', here, target)
        text = link['text'].strip('`')
        return f'`{text}`' if target.endswith(text) else f'{link["text"]} (`{target}`)'

    return LINK_OR_CODE.sub(rewritten, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of notebooks, which MkDocs leaves alone."""
    if page.file.src_uri.endswith('.ipynb'):
        return re.sub(r'href="([\w-]+)\.md', r'href="\1.html', html)
    return html


class Docstrings(griffe.Extension):
    """Adapt docstrings to Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Turn Sphinx's roles into links, where a page has the target, and examples into a section."""
        if obj.docstring:
            link = r'<autoref identifier="\1" optional><code>\1</code></autoref>'
            text = ROLE.sub(link, obj.docstring.value)
            obj.docstring.value = re.sub('^Example:$', 'Examples:', text, flags=re.MULTILINE)
