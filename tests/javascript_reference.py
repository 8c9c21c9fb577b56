"""Writes the reference of the JavaScript API from its JSDoc: ``python -m tests.javascript_reference``.

Reads what the browser client exports, and the widget's element. A public name without a description or a type is
an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "src/django_async_upload/static/django_async_upload"
PAGE = ROOT / "docs/reference/javascript.md"

HEAD = """# JavaScript

<!-- Made from the JSDoc by `make docs-js`: change that, not this page. -->

{about}
How to come by it: on a page of Django's by an [import map](../how-to/content-security-policy.md#import-maps),
with a bundler from [npm](../how-to/npm.md). The element without any script of your own: [a page of your
own](../how-to/page-without-a-form.md). Which [browsers](browsers.md).

Types are TypeScript's, and come with the npm package. What is not on this page may change.
"""


class Doc(NamedTuple):
    """A JSDoc comment: its text, its tags as (name, rest) in order, and the code behind it."""

    text: str
    tags: list[tuple[str, str]]
    code: str

    def all(self, name: str) -> list[str]:
        return [rest for tag, rest in self.tags if tag == name]

    def one(self, name: str) -> str:
        found = self.all(name)
        assert len(found) == 1, f"{self.code[:60]!r}: {len(found)} @{name}"
        return found[0]


class Property(NamedTuple):
    type: str
    name: str
    default: bool
    """Whether it may be left out."""
    text: str


def docs_of(path: str) -> list[Doc]:
    source = (SCRIPTS / path).read_text()
    found = re.finditer(r"/\*\*(.*?)\*/\n? *([^\n]*)", source, re.DOTALL)
    return [parse(each[1], each[2]) for each in found]


def parse(comment: str, code: str) -> Doc:
    lines = [re.sub(r"^\s*\* ?", "", line).rstrip() for line in comment.strip().splitlines()]
    text, *tags = re.split(r"(?:^|(?<=\. )|(?<=\n))@(?=\w)", "\n".join(lines))
    pairs = [each.partition(" ")[::2] for each in tags]
    tidy = re.sub(r"\{@link (?:import\([^)]*\)\.)?([\w.]+)\}", r"`\1`", text.strip())
    return Doc(tidy, [(name.strip(), " ".join(rest.split())) for name, rest in pairs], code)


def typed(rest: str) -> tuple[str, str]:
    """A type in braces, which may hold braces, and what follows it."""
    depth = 0
    for index, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:index], rest[index + 1 :].strip()
    raise ValueError(rest)


def properties(path: str, name: str) -> tuple[Doc, list[Property]]:
    """A ``@typedef {object}`` and what it has."""
    (doc,) = [
        each
        for each in docs_of(path)
        if any(tag.endswith(f"}} {name}") for tag in each.all("typedef"))
    ]
    found = []
    for rest in doc.all("property"):
        kind, words = typed(rest)
        called, _, text = words.partition(" ")
        assert text, f"{name}.{called} has no words"
        found.append(Property(kind, called.strip("[]"), called[0] == "[", text))
    return doc, found


def members(path: str, name: str) -> tuple[Doc, list[tuple[str, str, str]]]:
    """A class and, of each public member, how it is written, its type and its text."""
    docs = docs_of(path)
    (start,) = [i for i, each in enumerate(docs) if f"export class {name} " in each.code]
    found = []
    seen = set()
    for doc in docs[start + 1 :]:
        if re.match(r"(export|function|class) ", doc.code):
            break  # behind the class
        if match := re.match(r"(?:get )(\w+)\(\)|this\.([a-z]\w*) =|(?:async )?(\w+)\(", doc.code):
            called = match[1] or match[2] or match[3]
            seen.add(called)
            if "internal" in dict(doc.tags) or called == "constructor":
                continue
            if match[3]:
                arguments = [typed(rest)[1].split()[0] for rest in doc.all("param")]
                shown = ", ".join(each.strip("[]") + "?" * (each[0] == "[") for each in arguments)
                kind, called = typed(doc.one("returns"))[0], f"{called}({shown})"
            else:
                kinds = doc.all("returns") + doc.all("type")
                kind = typed(kinds[0])[0]
            text = doc.text
            for rest in doc.all("param"):
                argument, _, words = typed(rest)[1].partition(" ")
                text += f" `{argument.strip('[]')}`: {words}." if words else ""
            assert text, f"{name}.{called} has no words"
            found.append((called, kind, " ".join(text.split())))
    source = (
        (SCRIPTS / path).read_text().partition(f"export class {name} ")[2].partition("\n}\n")[0]
    )
    written = re.findall(r"^  (?:get |async )?([a-z]\w*)\([^;]*\) \{$", source, re.MULTILINE)
    assert not set(written) - seen, f"{name}: no JSDoc for {set(written) - seen}"
    return docs[start], found


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def table(head: str, rows: list[tuple[str, ...]]) -> Iterator[str]:
    columns = head.split(", ")
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') if '`' not in cell else cell for cell in row)} |"
    yield ""


def of_properties(path: str, name: str, *, heading: str = "") -> Iterator[str]:
    doc, found = properties(path, name)
    yield from (heading or f"### `{name}`", "")
    if doc.text:
        yield from (doc.text, "")
    rows = [(code(each.name + "?" * each.default), code(each.type), each.text) for each in found]
    yield from table("name, type, meaning", rows)


def of_class(path: str, name: str, made_by: str) -> Iterator[str]:
    doc, found = members(path, name)
    yield from (f"## `{name}`", "", doc.text, "")
    if made_by:
        yield from of_properties(path, f"{name}Options", heading=made_by)
    yield from ("### Properties and methods" if made_by else "", "") if made_by else ()
    yield from table("name, type, meaning", [(code(a), code(b), c) for a, b, c in found])
    yield from events(doc)


def events(doc: Doc, heading: str = "### Events") -> Iterator[str]:
    rows = []
    for rest in doc.all("fires"):
        called, _, text = rest.partition(" ")
        detail, _, words = text.partition(": ")
        rows.append((code(called), detail, words))
    if rows:
        yield from (heading, "")
        yield from table("event, `detail`, when", rows)


def states() -> Iterator[str]:
    (doc,) = [
        each
        for each in docs_of("client/life.js")
        if any(
            tag.endswith("} UploadState") or '| "cancelled"} UploadState' in tag
            for tag in each.all("typedef")
        )
    ]
    yield from ("### `UploadState`", "", f"`{typed(doc.one('typedef'))[0]}`", "", doc.text, "")


def element() -> Iterator[str]:
    (doc,) = [each for each in docs_of("widget.js") if "class AsyncUploadElement" in each.code]
    about = docs_of("widget.js")[0].text.partition(" Here is only how")[0]
    yield from ("## `<async-upload>`", "", about, "", doc.text, "")
    yield from ("### Attributes", "")
    attributes = [rest.partition(" ")[::2] for rest in doc.all("attribute")]
    yield from table("attribute, meaning", [(code(name), text) for name, text in attributes])
    yield from events(doc)
    css = (SCRIPTS / "widget.css").read_text()
    about = re.findall(r"^ \*   (--[\w-]+) +(.+)$", css, re.MULTILINE)
    yield from (
        "### CSS variables",
        "",
        "Set them on `async-upload` or on any element around it.",
        "",
    )
    defaults = dict(
        re.findall(r"var\((--[\w-]+), (light-dark\(.*?\)|\w+)\);", css[css.index("@supports") :])
    )
    plain = dict(re.findall(r"--_\w+: var\((--[\w-]+), ([^()]+)\);", css))
    yield from table(
        "variable, default, meaning",
        [(code(name), code(defaults.get(name, plain[name])), text) for name, text in about],
    )


def progress_element() -> Iterator[str]:
    path = "widget/progress-element.js"
    (doc,) = [each for each in docs_of(path) if "class AsyncUploadProgressElement" in each.code]
    yield from ("## `<async-upload-progress>`", "", doc.text, "", "### Attributes", "")
    attributes = [rest.partition(" ")[::2] for rest in doc.all("attribute")]
    yield from table("attribute, meaning", [(code(name), text) for name, text in attributes])
    yield from events(doc)


def page() -> str:
    about = re.match(
        r".*?\n((?:    [^\n]*\n|\n(?=    ))+)", docs_of("client.js")[0].text, re.DOTALL
    )
    assert about is not None
    lines = [
        HEAD.format(about=about[0].removesuffix(about[1]) + as_block(about[1])),
        *of_class("client/uploader.js", "Uploader", "### `new Uploader(options)`"),
        *of_properties("client/upload.js", "UploadOptions"),
        *of_properties("client/uploader.js", "Remembered"),
        *of_class("client/upload.js", "Upload", ""),
        *states(),
        *of_properties("client/meter.js", "Progress"),
        *of_properties("client/upload.js", "Result"),
        *of_class("protocol/errors.js", "UploadError", ""),
        "The codes: [errors](errors.md).",
        "",
        *element(),
        *progress_element(),
        *of_class("client/watcher.js", "Watcher", "### `new Watcher(options)`"),
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def as_block(code: str) -> str:
    inner = re.sub(r"^    ", "", code.strip("\n"), flags=re.MULTILINE)
    return f"\n```js\n{inner}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page())
