"""A TCP proxy on loopback whose wire can be cut, held and muted: the network between two processes."""

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

CHUNK_BYTES = 65_536


@dataclass(slots=True, eq=False)
class _Link:
    """One connection: the caller's side, and the server's."""

    caller: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    sent_bytes: int = 0
    lost_bytes: bool = False

    def abort(self) -> None:
        for writer in (self.caller, self.server):
            if writer is not None:
                writer.transport.abort()


@dataclass(slots=True)
class _State:
    """What the wire does to bytes now.

    Attributes:
        upstream: Clear while what callers send is held.
        downstream: Clear while what the server sends is held.
        refuses: New connections end at once.
        muted: What the server sends is dropped.
        cut_after_bytes: The next connection on which so many bytes went to the server is aborted; None for no such cut.
        lose_reply_after_bytes: The same, but when the server replies.
    """

    upstream: asyncio.Event = field(default_factory=asyncio.Event)
    downstream: asyncio.Event = field(default_factory=asyncio.Event)
    refuses: bool = False
    muted: bool = False
    cut_after_bytes: int | None = None
    lose_reply_after_bytes: int | None = None


class Proxy:
    """Passes connections to a port of 127.0.0.1. Its methods may be called from any thread; use it as a context manager."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.cuts = 0
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"proxy to {target_port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def open(self) -> None:
        """Let everything pass again; connections that lost bytes meanwhile are aborted, as a router's end would."""
        self._call(self._open)

    def cut(self) -> None:
        """Abort every connection, and each new one, until `open`."""
        self._call(self._cut)

    def hold(self) -> None:
        """Let no byte pass in either direction until `open`; connections stay."""
        self._call(lambda: self._hold(both=True))

    def hold_replies(self) -> None:
        """Let requests pass and keep the replies until `open`."""
        self._call(lambda: self._hold(both=False))

    def mute(self) -> None:
        """Let requests pass and lose the replies until `open`."""
        self._call(self._mute)

    def cut_after(self, count: int) -> None:
        """Abort the next connection on which so many bytes were sent to the server: once, in the middle of a body."""
        self._call(lambda: self._cut_after(count))

    def lose_reply_after(self, count: int) -> None:
        """Abort the next connection on which more bytes were sent to the server when its reply comes: once, after a whole body."""
        self._call(lambda: self._lose_reply_after(count))

    def _call(self, work: object) -> None:
        assert callable(work)
        done = threading.Event()

        def run() -> None:
            work()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait(5)

    def _open(self) -> None:
        self._state.refuses = self._state.muted = False
        self._state.cut_after_bytes = self._state.lose_reply_after_bytes = None
        self._state.upstream.set()
        self._state.downstream.set()
        for link in list(self._links):
            if link.lost_bytes:
                link.abort()

    def _cut(self) -> None:
        self._state.refuses = True
        for link in list(self._links):
            link.abort()

    def _hold(self, *, both: bool) -> None:
        self._state.downstream.clear()
        if both:
            self._state.upstream.clear()

    def _mute(self) -> None:
        self._state.muted = True

    def _cut_after(self, count: int) -> None:
        self._state.cut_after_bytes = count

    def _lose_reply_after(self, count: int) -> None:
        self._state.lose_reply_after_bytes = count

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._state = _State()
        self._state.upstream.set()
        self._state.downstream.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        for link in list(self._links):
            link.abort()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(caller=writer)
        self._links.add(link)
        try:
            if self._state.refuses:
                return
            from_server, link.server = await asyncio.open_connection("127.0.0.1", self.target_port)
            pumps = [asyncio.create_task(self._pump_up(reader, link)), asyncio.create_task(self._pump_down(from_server, link))]
            await asyncio.gather(*pumps)
        except (OSError, asyncio.CancelledError):
            # Cut, or the proxy ends: a task that ended as canceled would be told to the loop's handler.
            pass
        finally:
            link.abort()
            self._links.discard(link)

    async def _pump_up(self, reader: asyncio.StreamReader, link: _Link) -> None:
        assert link.server is not None
        while chunk := await reader.read(CHUNK_BYTES):
            await self._state.upstream.wait()
            limit = self._state.cut_after_bytes
            if limit is not None and link.sent_bytes + len(chunk) > limit:
                self._state.cut_after_bytes = None
                self.cuts += 1
                link.server.write(chunk[: max(0, limit - link.sent_bytes)])
                with suppress(OSError):
                    await link.server.drain()
                link.abort()
                return
            link.sent_bytes += len(chunk)
            link.server.write(chunk)
            await link.server.drain()
        with suppress(OSError):
            link.server.write_eof()

    async def _pump_down(self, reader: asyncio.StreamReader, link: _Link) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            await self._state.downstream.wait()
            limit = self._state.lose_reply_after_bytes
            if limit is not None and link.sent_bytes > limit:
                self._state.lose_reply_after_bytes = None
                self.cuts += 1
                link.abort()
                return
            if self._state.muted:
                link.lost_bytes = True
                continue
            link.caller.write(chunk)
            await link.caller.drain()
        with suppress(OSError):
            link.caller.write_eof()
