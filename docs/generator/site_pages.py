# SPDX-License-Identifier: Apache-2.0
"""The mkdocs hook: adds the pages that are made from the code."""

import logging
import re
from typing import Any

import component_pages
import error_pages
import pipeline_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

CATALOGUE = "components/index.md"
TROUBLESHOOTING = "troubleshooting.md"
# A file of the repository, as pages link it that are read there, too.
SOURCE_LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)\)")
log = logging.getLogger("mkdocs.hooks.site_pages")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the components' pages behind the catalogue, by family."""
    config.nav = [_with_components(entry) for entry in config.nav or []]
    return config


def _with_components(entry: dict[str, Any]) -> dict[str, Any]:
    ((title, below),) = entry.items()
    if below == CATALOGUE:
        families = [
            {family: [f"components/{family}/{name}.md" for name in names]}
            for family, names in component_pages.FAMILIES.items()
        ]
        return {title: [CATALOGUE, *families]}
    return {title: [_with_components(each) for each in below] if isinstance(below, list) else below}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Makes the pages."""
    pages = component_pages.all_pages()
    made = {f"components/{page.family}/{page.name}.md": page for page in pages}
    texts = {path: component_pages.render(page) for path, page in made.items()}
    texts[CATALOGUE] = component_pages.render_catalogue(pages)
    texts["pipelines.md"] = pipeline_pages.render()
    for path, text in texts.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Adds the collected sentences to the page on troubleshooting; names files outside of docs."""
    if page.file.src_uri == TROUBLESHOOTING:
        markdown = error_pages.render(markdown)
    if "/" in page.file.src_uri:
        return markdown
    return SOURCE_LINK.sub(lambda link: _source(link[1], link[2], page.file.src_uri), markdown)


def _source(text: str, path: str, page: str) -> str:
    if not (component_pages.ROOT / path).exists():
        log.warning("%s links %s, which is not there", page, path)
    return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"


def on_page_content(html: str, **_: Any) -> str:
    """Ends a sentence before a block with one colon; docstrings end it with two."""
    return html.replace("::</p>", ":</p>")
