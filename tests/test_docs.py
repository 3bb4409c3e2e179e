"""Runs every snippet of README.md and of the pages under docs/, each page in a folder of its own.

What a fence's info string says is documented in CONTRIBUTING.md, under "Snippets".
"""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PAGE_S_MAX = 240
SHOWN_ONLY = {"text", "json", "toml", "yaml", "csv", "sql", "ini", "html"}
FENCE = re.compile(r"^(?P<indent> *)(?P<mark>`{3,}|~{3,})(?P<info>[^`\n]*)$")


@dataclass(frozen=True, slots=True)
class Snippet:
    """One fence: its language, the attributes of its info string, its text and its first line."""

    page: Path
    line: int
    language: str
    attributes: dict[str, str]
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(slots=True)
class Run:
    """What the snippets of one page share."""

    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})
    groups: list[int] = field(default_factory=list)


def snippets(page: Path) -> Iterator[Snippet]:
    """The fences of a page in order; a fence that is not closed is an AssertionError."""
    lines = iter(enumerate(page.read_text("utf-8").splitlines(), 1))
    for number, line in lines:
        opened = FENCE.match(line)
        if opened is None:
            continue
        body: list[str] = []
        for _, inner in lines:
            closed = FENCE.match(inner)
            if closed and closed["mark"].startswith(opened["mark"]) and not closed["info"].strip():
                break
            body.append(inner.removeprefix(opened["indent"]))
        else:
            raise AssertionError(f"{page.name}:{number}: this fence is never closed")
        language, _, rest = opened["info"].strip().partition(" ")
        attributes = dict(word.partition("=")[::2] for word in shlex.split(rest))
        yield Snippet(page, number, language, attributes, "\n".join(body) + "\n")


def faults(snippet: Snippet) -> list[str]:
    """What is wrong with a fence before it is run."""
    found = []
    known = {"python": {"file", "skip"}, "console": {"skip", "exit", "match"}}
    language = {"bash": "console"}.get(snippet.language, snippet.language)
    if language not in known and language not in SHOWN_ONLY:
        found.append(f"{snippet}: language {snippet.language!r} is unknown; a listing is `text`")
    for name in snippet.attributes.keys() - known.get(language, {"file", "skip"}) - {"title"}:
        found.append(f"{snippet}: unknown attribute {name!r}")
    if "skip" in snippet.attributes and not snippet.attributes["skip"]:
        found.append(f'{snippet}: skip needs a reason: skip="needs a server"')
    return found


def run(snippet: Snippet, page: Run) -> None:
    """Run one snippet in the current folder; it raises if the snippet fails."""
    if "skip" in snippet.attributes:
        print(f"{snippet}: skipped: {snippet.attributes['skip']}")
    elif "file" in snippet.attributes:
        _write(snippet, page)
    elif snippet.language == "python":
        print(f"{snippet}: python")
        _execute(snippet, page)
    elif snippet.language in {"console", "bash"}:
        _shell(snippet, page)


def _write(snippet: Snippet, page: Run) -> None:
    path = Path(snippet.attributes["file"])
    print(f"{snippet}: file {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(snippet.text, "utf-8")
    if snippet.language == "python":
        # Importing proves that the file runs; later snippets of the page see its names.
        module = ".".join(path.with_suffix("").parts)
        sys.modules.pop(module, None)
        importlib.invalidate_caches()
        loaded = importlib.import_module(module)
        page.names.update({name: value for name, value in vars(loaded).items() if not name.startswith("__")})


def _execute(snippet: Snippet, page: Run) -> None:
    # Padding makes line numbers in tracebacks those of the page.
    source = "\n" * snippet.line + snippet.text
    tree = ast.parse(source, str(snippet.page))
    exec(compile(tree, str(snippet.page), "exec"), page.names)


def _shell(snippet: Snippet, page: Run) -> None:
    """Run the lines after ``$ `` in one shell; its folder is kept for the snippets after it."""
    commands, shown = commands_of(snippet.text)
    print(f"{snippet}: $ {'; '.join(commands)}")
    Path(".shell").mkdir(exist_ok=True)
    notes = Path(".shell").resolve()
    script = f"trap 'pwd > {shlex.quote(str(notes / 'folder'))}' EXIT\n" + "\n".join(commands)
    with (notes / "output").open("w+") as output:
        # A file, not a pipe: a service left running in the background would keep a pipe open.
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        page.groups.append(shell.pid)
        code = shell.wait()
        output.seek(0)
        written = output.read()
    print(written, end="")
    expected = int(snippet.attributes.get("exit", "0"))
    assert code == expected, f"{snippet}: exit code {code}, not {expected}"
    if "match" in snippet.attributes:
        same = doctest.OutputChecker().check_output(shown, written, doctest.ELLIPSIS)
        assert same, f"{snippet}: the page shows\n{shown}and the commands wrote\n{written}"
    os.chdir((notes / "folder").read_text().strip())


def commands_of(text: str) -> tuple[list[str], str]:
    """The commands of a console snippet, continued lines joined, and the output that it shows."""
    commands: list[str] = []
    shown: list[str] = []
    continued = False
    for line in text.splitlines():
        if continued:
            commands[-1] += "\n" + line.removeprefix("> ")
        elif line.startswith("$ "):
            commands.append(line[2:])
        else:
            shown.append(line + "\n")
            continue
        continued = commands[-1].endswith("\\")
    return commands, "".join(shown)


def run_page(page: Path, folder: Path) -> None:
    """Run a page's snippets in order; background processes of its shells are ended afterwards."""
    os.chdir(folder)
    sys.path.insert(0, "")  # the current folder, also after a `cd`
    sys.dont_write_bytecode = True  # a page may write a file twice within one tick of its mtime
    state = Run()
    try:
        for snippet in snippets(page):
            run(snippet, state)
    finally:
        for group in state.groups:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                pass  # nothing was left running


def run_apart(page: Path, folder: Path, seconds_max: float = PAGE_S_MAX) -> subprocess.CompletedProcess[str]:
    """Run a page in a fresh interpreter with txbus on its PATH."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TXBUS_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    # -P: the folder of this file must not be searched, for its `typing` is not Python's.
    command = [sys.executable, "-P", __file__, str(page), str(folder)]
    return subprocess.run(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds_max,
    )


def id_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_fences_are_of_a_known_kind(page: Path) -> None:
    """Each fence has a known language and known attributes, so that none is left out by a slip."""
    assert [fault for snippet in snippets(page) for fault in faults(snippet)] == []


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_snippets_run(page: Path, tmp_path: Path) -> None:
    """What a page shows works, in order, from an empty folder."""
    done = run_apart(page, tmp_path)
    print(done.stdout)
    assert done.returncode == 0, f"{id_of(page)}:\n{done.stdout[-4000:]}"


GOOD = """
```python file="shop.py"
price = 3
```
Text.

- in a list:

    ```python
    total = price * 2
    assert __name__ == "__main__"
    ```

```console
$ mkdir -p inner && cd inner
$ python -c "import sys; \\
> print('one', 'two')"
one two
```
```console match
$ basename $PWD; false || echo "it went" on
inner
it ... on
```
```console exit=3
$ exit 3
```
```console skip="needs a server"
$ false
```
```python
import os
assert total == 6 and os.getcwd().endswith("inner")
```
"""


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ("", None),
        ("```python\nassert total == 7\n```\n", "AssertionError"),
        ("```console\n$ false\n$ true\n```\n", "exit code 1, not 0"),
        ("```console match\n$ echo one\ntwo\n```\n", "the page shows"),
        ("```python file=shop.py\nprice = 1 / 0\n```\n", "ZeroDivisionError"),
        ("```python\nprice\n", "never closed"),
    ],
)
def test_the_runner_finds_what_fails(tmp_path: Path, extra: str, text: str | None) -> None:
    """Negative control: a page that is right passes, and each kind of failure fails it."""
    page = tmp_path / "page.md"
    page.write_text(GOOD + extra)
    folder = tmp_path / "run"
    folder.mkdir()
    done = run_apart(page, folder)
    if text is None:
        assert done.returncode == 0, done.stdout
    else:
        assert done.returncode != 0
        assert text in done.stdout


def test_a_service_left_running_is_ended(tmp_path: Path) -> None:
    """A page may leave a process in the background; it does not outlive the page."""
    page = tmp_path / "page.md"
    page.write_text("```console\n$ sleep 1000 & echo $! > pid\n```\n")
    assert run_apart(page, tmp_path).returncode == 0
    pid = int((tmp_path / "pid").read_text())
    status = Path(f"/proc/{pid}/stat")
    # Killed, and perhaps not yet collected by whoever inherited it.
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_page_that_hangs_is_ended(tmp_path: Path) -> None:
    """A page has a time limit."""
    page = tmp_path / "page.md"
    page.write_text("```python\nimport time\ntime.sleep(1000)\n```\n")
    with pytest.raises(subprocess.TimeoutExpired):
        run_apart(page, tmp_path, seconds_max=2)


@pytest.mark.parametrize(
    ("fence", "fault"),
    [
        ("```pyton\n```\n", "language 'pyton'"),
        ("```\n```\n", "language ''"),
        ("```python skp='x'\n```\n", "unknown attribute 'skp'"),
        ("```console skip\n```\n", "skip needs a reason"),
    ],
)
def test_a_slip_in_a_fence_is_seen(tmp_path: Path, fence: str, fault: str) -> None:
    """Negative control: a fence that would be left out by mistake is reported."""
    page = tmp_path / "page.md"
    page.write_text(fence)
    (found,) = [fault for snippet in snippets(page) for fault in faults(snippet)]
    assert fault in found


if __name__ == "__main__":
    run_page(Path(sys.argv[1]), Path(sys.argv[2]))
