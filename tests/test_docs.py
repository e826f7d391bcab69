"""What the documentation says is so: links lead somewhere, commands and options exist, site configs are good."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpcrunner.config.load import load

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def commands() -> list[tuple[str, list[str]]]:
    """Every hpcrunner command line in a code block or between backticks, with the page it stands in."""
    found = []
    for page in PAGES:
        text = page.read_text()
        lines = [line for block in re.findall(r"^```.*?^```", text, re.DOTALL | re.MULTILINE) for line in block.splitlines()]
        lines += re.findall(r"`(hpcrunner [a-z][^`]*)`", text)
        for line in lines:
            match = re.search(r"\bhpcrunner ((?:[a-z-]+|--version)(?: [^#>|]*)?)", line.partition(" 2>>")[0])
            if match and not line.startswith("pipx"):
                found.append((page.name, match[1].partition("`")[0].split()))
    return found


def test_there_are_commands_in_the_documentation() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: " ".join(value) if isinstance(value, list) else value)
def test_commands_exist_with_their_options(page: str, words: list[str]) -> None:
    from hpcrunner.cli.main import parser

    words = [word for word in words if word not in ("...",)]
    if "--version" in words:
        return
    if words[0] in ("submit-from-queue", "status", "logs", "cancel", "return-results", "resolve", "doctor", "render", "site", "recipe",
                    "cache", "images", "completion"):
        command = words[:2] if words[0] in ("cache", "images") and len(words) > 1 else words[:1]
        done = subprocess.run([sys.executable, "-m", "hpcrunner", *command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", " ".join(words[1:])):
            assert option in done.stdout, f"{page}: {words[0]} has no {option}"
        if len(words) > 1 or words[0] == "submit-from-queue":
            parser().parse_args(words if words[0] != "logs" or len(words) > 1 else [*words, "KEY"])
    else:
        pytest.fail(f"{page}: there is no command {words[0]}")


@pytest.mark.parametrize(("page", "count", "base"), [("install", 3, "laptop"), ("slurm", 4, "slurm")])
def test_yaml_of_the_pages_is_a_good_site(page: str, count: int, base: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == count
    for number, block in enumerate(blocks):
        site = tmp_path / f"{number}.yaml"
        extends = "" if "extends" in block else f"extends: {base}\n"
        site.write_text(extends + block.replace("...", "0" * 64))
        load(site)


def test_every_shipped_site_config_is_good() -> None:
    names = [path.stem for path in (ROOT / "site-configs").glob("*.yaml")]
    assert "laptop" in names
    for name in names:
        load(Path(name))


def test_every_error_of_the_page_is_one_that_the_program_has() -> None:
    """The messages in docs/errors.md are looked up in the source, so that the page doesn't rot."""
    source = " ".join(path.read_text() for path in (ROOT / "hpcrunner").rglob("*.py"))
    source = re.sub(r'"\s*f?"', "", source)
    table = (ROOT / "docs" / "errors.md").read_text().partition("## Messages")[2]
    for message in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE):
        words = re.split(r"[0-9]+|'shub'|\.\.\.|workspace|cores|\(.*\)|lock\.lock", message)
        for part in words:
            if len(part.strip(" ,;")) > 3:
                assert part.strip(" ,;") in source, f"{message!r}: {part!r}"
