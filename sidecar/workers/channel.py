"""What supervisor and worker say to each other: one JSON object a line, the key `is` tells which. No decision is here.

to a worker     hello (settings, number, wanted, token, slots, unix: descriptors), accept (slots), drain, finish,
                state (running, least: [epoch, generation]), collect (ask), page (ask, families), bye
from a worker   up, refused (text), serves (epoch, generation), collected (ask, families), scrape (ask), last (families)

A worker ends after `refused` or `last`, once it was told `bye`: what it says would be lost if it went while it is
spoken to. JSON as Python writes it: NaN is a value of some gauges.
"""

import asyncio
import json
import socket
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from sidecar.settings import SECTIONS, Settings

Message = dict[str, Any]
# A page of metrics of all workers, many times over.
MAX_LINE_BYTES: Final = 16 * 1024 * 1024


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # Whether this end has said the last that it will.
        self.ended = False

    @classmethod
    async def over(cls, end: socket.socket) -> "Channel":
        """Takes over one end of a socket pair."""
        end.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=end, limit=MAX_LINE_BYTES))

    def send(self, kind: str, **fields: Any) -> None:
        """Says something; nothing if the other end has gone. It is small, or asked for: nobody waits for it to go."""
        if not (self.ended or self._writer.is_closing()):
            self._writer.write(json.dumps({"is": kind, **fields}).encode() + b"\n")

    def end(self) -> None:
        """Says bye, and nothing more."""
        self.send("bye")
        self.ended = True

    async def receive(self) -> Message | None:
        """What the other end says next; None once it has gone."""
        try:
            line = await self._reader.readline()
        except OSError:
            return None
        if not line.endswith(b"\n"):
            return None
        message: Message = json.loads(line)
        return message

    async def close(self) -> None:
        """Gives it back."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


def plain(settings: Settings) -> Message:
    """The settings as JSON takes them."""
    return asdict(settings)


def settings_of(message: Message) -> Settings:
    """The settings again."""
    sections: dict[str, Any] = {section: table(**message[section]) for section, table in SECTIONS.items()}
    return Settings(**sections)
