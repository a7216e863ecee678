"""Build the site: `python -m docs.generator`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from docs.generator import links, pages, reference

ROOT = Path(__file__).parents[2]
BUILD, SITE = ROOT / "build" / "docs", ROOT / "site"


def build() -> None:
    """Build the site into `site/`; exit with 1 when a link is broken."""
    for directory in (BUILD, SITE):
        shutil.rmtree(directory, ignore_errors=True)
    yaml = YAML(typ="safe", pure=True)
    config = yaml.load(ROOT / "mkdocs.yml")
    try:
        collected = pages.collect(ROOT, config["nav"], reference.reference(ROOT))
    except pages.BrokenLink as error:
        sys.exit(str(error))
    for path, content in collected.items():
        file = BUILD / "pages" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    shutil.copy(Path(__file__).with_name("site.css"), BUILD / "pages")
    config["nav"] = pages.expand(config["nav"], {path for path in collected if path.endswith(".md")})
    yaml.dump(config, BUILD / "mkdocs.yml")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(BUILD / "mkdocs.yml")]
    done = subprocess.run(command, check=False, text=True, capture_output=True)  # noqa: S603
    if done.returncode != 0:
        output = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
        # Strict mode ends in a traceback, which says nothing more.
        sys.exit(output.partition("Traceback")[0] if "Aborted because --strict" in output else output)
    # Zensical writes only beside its configuration.
    shutil.move(BUILD / config["site_dir"], SITE)
    broken = list(links.broken(SITE))
    if broken:
        sys.exit("\n".join([*broken, f"{len(broken)} broken links"]))
    print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE.relative_to(ROOT)}/")  # noqa: T201


if __name__ == "__main__":
    build()
