"""The command line, ``async-upload``. Exit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import __version__
from ..exceptions import UploadError

if TYPE_CHECKING:
    from .client import UploadClient
    from .display import Display
    from .state import Entry
    from .upload import UploadResult

FAILED, MISUSED, STOPPED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        from .display import Display
    except ModuleNotFoundError as error:
        needed = "pip install 'django-resumable-upload[client]'"
        print(f"{error.name} is missing: {needed}", file=sys.stderr)
        return MISUSED
    with Display() as display:
        logging.getLogger("django_async_upload.client").addHandler(display)
        logging.getLogger("django_async_upload.client").setLevel(logging.INFO)
        try:
            return asyncio.run(_Commands(options, display).run())
        except KeyboardInterrupt:
            display.say(_resume_hint(options))
            return STOPPED
        except UploadError as error:
            display.say(f"async-upload: {error}")
            return FAILED
        except (OSError, ValueError) as error:
            display.say(f"async-upload: {error}")
            return MISUSED


def _resume_hint(options: argparse.Namespace) -> str:
    if options.no_state:
        return "Stopped."
    command = "async-upload resume"
    command += f" --url {options.url}" if options.url else ""
    command += f" --state {options.state}" if options.state else ""
    return f"Stopped. The sent data of files is kept on the server; resume with: {command}"


class _Commands:
    """One run of the program."""

    def __init__(self, options: argparse.Namespace, display: Display) -> None:
        self._options = options
        self._display = display

    def run(self) -> Coroutine[Any, Any, int]:
        commands = {
            "put": self._put,
            "resume": self._resume,
            "status": self._status,
            "watch": self._watch,
            "cancel": self._cancel,
        }
        return commands[self._options.command]()

    async def _put(self) -> int:
        options = self._options
        metadata = dict(options.metadata)
        if options.taker:
            metadata["taker"] = options.taker
        async with self._client(options.url) as client:
            return await self._all(
                [
                    self._one(client, path, options.name, metadata, options.sha256)
                    for path in options.files
                ]
            )

    async def _resume(self) -> int:
        from .state import StateFile

        options = self._options
        state = StateFile(options.state)
        entries = [each for each in state.read().values() if options.url in (None, each.url)]
        if options.uploads:
            entries = [each for each in entries if _is_named(each, options.uploads)]
        if not entries:
            self._display.say("There is nothing to resume.")
            return FAILED if options.uploads else 0
        urls = sorted({each.url for each in entries})
        if len(urls) > 1:  # a ticket or a cookie must not be sent to another server
            raise ValueError(
                "These uploads are on several servers. Resume those of one: "
                + " or ".join(f"--url {url}" for url in urls)
            )
        async with self._client(urls[0]) as client:
            return await self._all(
                [
                    self._one(
                        client,
                        each.path,
                        each.name,
                        each.metadata,
                        each.digest == "sha-256",
                        each.content_type,
                    )
                    for each in entries
                ]
            )

    async def _status(self) -> int:
        async with self._client(self._options.url) as client:
            status = (await client.status(self._options.upload)).to_fields()
        if self._options.json:
            self._print_json(id=status.pop("upload"), **status)
        else:
            for field, value in status.items():
                print(f"{field}: {value}")
        return 0

    async def _watch(self) -> int:
        from .conversation import Progress

        options = self._options
        failed = False
        states: dict[str, str] = {}
        async with self._client(options.url) as client:
            async for each in client.watch(*options.uploads, everyone=options.all):
                failed |= each.state in ("failed", "cancelled", "expired")
                done = max(each.durable, each.received or 0)
                if options.json:
                    status = each.to_fields()
                    self._print_json(id=status.pop("upload"), **status)
                    continue
                if each.state in ("created", "uploading"):
                    progress = Progress("uploading", done, each.size)
                    self._display.show(each.upload, each.name, progress)
                else:
                    self._display.end(each.upload)
                if states.get(each.upload) != each.state:
                    error = f" ({each.error})" if each.error else ""
                    print(f"{each.upload} {each.name}: {each.state}{error}", flush=True)
                states[each.upload] = each.state
        return FAILED if failed else 0

    async def _cancel(self) -> int:
        async with self._client(self._options.url) as client:
            await client.cancel(self._options.upload, finished=self._options.finished)
        if self._options.json:
            self._print_json(id=self._options.upload, state="cancelled")
        else:
            print(f"{self._options.upload} cancelled")
        return 0

    # ----------------------------------------------------------------------------------------------

    def _client(self, url: str) -> UploadClient:
        from .client import UploadClient

        options = self._options
        ticket = options.ticket
        if options.ticket_file is not None:
            ticket = _TicketFile(options.ticket_file)
            ticket()
        return UploadClient(
            url,
            ticket=ticket,
            cookie=options.cookie,
            state=False if options.no_state else options.state or True,
            patience=options.patience,
            jobs=options.jobs,
            http=options.http,
        )

    async def _all(self, uploads: list[Coroutine[Any, Any, bool]]) -> int:
        completed = await asyncio.gather(*uploads)
        return 0 if all(completed) else FAILED

    async def _one(
        self,
        client: UploadClient,
        path: str,
        name: str | None,
        metadata: dict[str, Any],
        sha256: bool,
        content_type: str = "",
    ) -> bool:
        """Upload a file and print the outcome; returns whether it completed."""
        what: str | BinaryIO = path
        if path == "-":
            what, name = sys.stdin.buffer, name or "stdin"
        shown = name or os.path.basename(path)
        bar = object()
        try:
            result = await client.upload(
                what,
                name=name,
                metadata=metadata,
                content_type=content_type,
                sha256=sha256,
                on_progress=lambda progress: self._display.show(bar, shown, progress),
            )
        except UploadError as error:
            code = error.facts.get("code", error.code)
            self._failed(path, shown, code, error.message, error.retryable)
            return False
        except OSError as error:
            self._failed(path, shown, "unreadable", str(error), False)
            return False
        finally:
            self._display.end(bar)
        self._completed(path, result)
        return True

    def _completed(self, path: str, result: UploadResult) -> None:
        if self._options.json:
            fields = {**dataclasses.asdict(result), "seconds": round(result.seconds, 3)}
            self._print_json(**fields, path=path)
        else:
            print(f"{path} -> {result.stored_as} ({result.size} bytes, crc32c {result.crc32c})")

    def _failed(self, path: str, name: str, code: str, message: str, retryable: bool) -> None:
        if self._options.json:
            fields = {"error": code, "message": message, "retryable": retryable}
            self._print_json(name=name, **fields, path=path)
        else:
            self._display.say(f"async-upload: {path}: {message} ({code})")

    def _print_json(self, **fields: object) -> None:
        print(json.dumps(fields), flush=True)


class _TicketFile:
    """A ticket file, read again for each connection, so that another program can replace the ticket."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self) -> str:
        with open(self._path, encoding="utf-8") as file:
            return file.read().strip()


def _is_named(entry: Entry, names: Sequence[str]) -> bool:
    paths = {os.path.abspath(name) for name in names}
    return entry.upload in names or entry.path in paths


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="async-upload", description="Upload files, resumable and verified."
    )
    parser.add_argument("--version", action="version", version=__version__)
    common = argparse.ArgumentParser(add_help=False)
    login = common.add_mutually_exclusive_group()
    login.add_argument("--ticket", help="a ticket (default: the variable ASYNC_UPLOAD_TICKET)")
    login.add_argument("--ticket-file", metavar="FILE", help="a file that holds a ticket")
    login.add_argument("--cookie", help="a Cookie header instead, sessionid=...")
    state = common.add_mutually_exclusive_group()
    state.add_argument("--state", metavar="FILE", help="where unfinished uploads are remembered")
    state.add_argument("--no-state", action="store_true", help="remember nothing")
    common.add_argument(
        "--http",
        action="store_true",
        default=None,
        help="over HTTP (default: where a WebSocket is refused)",
    )
    common.add_argument("--json", action="store_true", help="one JSON object per file on stdout")
    common.add_argument(
        "--patience",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="keep retrying this long without any progress (default: %(default)g)",
    )
    sending = argparse.ArgumentParser(add_help=False)
    sending.add_argument(
        "--jobs", type=_positive, default=4, metavar="N", help="large files at once (default: 4)"
    )

    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    put = commands.add_parser("put", parents=[common, sending], help="upload files")
    put.add_argument("files", nargs="+", type=_file, metavar="FILE", help="- is standard input")
    put.add_argument("--url", required=True, help="ws://HOST/ws/uploads/")
    put.add_argument("--name", help="the file's name on the server")
    put.add_argument("--metadata", type=_pair, action="append", default=[], metavar="KEY=VALUE")
    put.add_argument(
        "--taker",
        choices=["form", "api", "receiver"],
        help="who takes the finished file at the server (default: receiver)",
    )
    put.add_argument("--sha256", action="store_true", help="also compare the SHA-256")

    resume = commands.add_parser(
        "resume", parents=[common, sending], help="resume unfinished uploads"
    )
    resume.add_argument("uploads", nargs="*", metavar="ID|FILE", help="default: all of them")
    resume.add_argument("--url", help="only those of this endpoint")

    for command, text in (
        ("status", "ask the server about an upload"),
        ("cancel", "cancel an upload"),
    ):
        about = commands.add_parser(command, parents=[common], help=text)
        about.add_argument("upload", metavar="ID")
        about.add_argument("--url", required=True, help="ws://HOST/ws/uploads/")
        about.set_defaults(jobs=1)
        if command == "cancel":
            about.add_argument(
                "--finished",
                action="store_true",
                help="also one that has completed and is not taken yet",
            )
    watch = commands.add_parser(
        "watch", parents=[common], help="follow uploads, those named until they have ended"
    )
    watch.add_argument("uploads", nargs="*", metavar="ID", help="default: all of the user's")
    watch.add_argument("--all", action="store_true", help="the uploads of all users, for staff")
    watch.add_argument("--url", required=True, help="ws://HOST/ws/uploads/")
    watch.set_defaults(jobs=1)
    return parser


def _file(path: str) -> str:
    if os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"{path} is a directory; name the files in it")
    return path


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
