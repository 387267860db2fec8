"""Point the files that a package index shows at the repository: run by the publish workflow, on its own checkout.

    python scripts/prepare_release.py https://github.com/OWNER/NAME TAG

A package index shows README.md without the repository around it. Its links become absolute, to the release's tag, and
the metadata of both wheels gets the addresses of source, documentation, changelog and issues. The repository itself
keeps relative links, which also work in clones and forks.
"""

from __future__ import annotations

import argparse
import configparser
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "client/README.md")
LINK = re.compile(r"(!?)(\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)")


def absolute_links(text: str, folder: str, repository: str, tag: str) -> str:
    """Return Markdown text whose relative links point into a repository.

    Args:
        text: the Markdown text.
        folder: the folder that its links start from, relative to the repository's root; "" for the root itself.
        repository: address of the repository.
        tag: branch, tag or commit.
    """

    def replaced(match: re.Match[str]) -> str:
        picture, title, target = match.groups()
        path, anchor = re.fullmatch(r"([^#]*)(#.*)?", target, re.DOTALL).groups("")
        kind, path = "raw" if picture else "blob", posixpath.normpath(f"{folder or '.'}/{path}")
        return f"{picture}{title}({repository}/{kind}/{tag}/{path}{anchor})"

    return LINK.sub(replaced, text)


def project_urls(repository: str, tag: str) -> dict[str, str]:
    return {
        "Source": repository,
        "Documentation": f"{repository}/blob/{tag}/docs/index.md",
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", help="address of the repository")
    parser.add_argument("tag", help="tag of the release")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to change (default: this one)")
    args = parser.parse_args()
    repository = args.repository.rstrip("/")
    for name in READMES:
        file = args.root / name
        folder = name.rpartition("/")[0]
        text = absolute_links(file.read_text(encoding="utf-8"), folder, repository, args.tag)
        file.write_text(text, encoding="utf-8")
    urls = project_urls(repository, args.tag)
    setup = args.root / "setup.cfg"
    lines = "".join(f"    {name} = {address}\n" for name, address in urls.items())
    text = setup.read_text(encoding="utf-8").replace("[options]\n", f"project_urls =\n{lines}\n[options]\n", 1)
    setup.write_text(text, encoding="utf-8")
    metadata = configparser.ConfigParser()
    metadata.read(setup, encoding="utf-8")
    if "project_urls" not in metadata["metadata"]:
        raise SystemExit(f"{setup} has no section [options] after [metadata]. Add project_urls by hand.")
    client = args.root / "client" / "pyproject.toml"
    table = "[project.urls]\n" + "".join(f'{name} = "{address}"\n' for name, address in urls.items())
    client.write_text(client.read_text(encoding="utf-8") + f"\n{table}", encoding="utf-8")


if __name__ == "__main__":
    main()
