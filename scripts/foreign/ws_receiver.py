"""Sends callbacks to our WebSocket receiver by software that others wrote: websockets, standardwebhooks, cloudevents.

    python scripts/foreign/ws_receiver.py PATH_OF_EXAMPLE_LISTEN

Prints a line a check; exits 1 if one fails.
"""

import asyncio
import base64
import json
import os
import sys
from datetime import datetime, timezone

# A file of this folder has the library's name: while the folder is searched, the import would find that file.
sys.path = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from standardwebhooks import Webhook
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE = 30  # seconds that anything may take
BODY = '{"orderId":"12345","text":"größer als 0 \U0001f600"}'
LIMIT = 1 << 20  # bytes of a body


class Failed(Exception):
    """A check did not hold; what follows would only repeat it."""


def equal(sentence, found, expected):
    if found != expected:
        raise Failed(f"{sentence}: found {found!r}, not {expected!r}")
    print(f"ok {sentence}", flush=True)


async def soon(awaitable):
    return await asyncio.wait_for(awaitable, PATIENCE)


class Receiver:
    """The program, which prints its URL, and a line for each callback."""

    def __init__(self, program, key=None):
        self.program = program
        self.environment = {name: value for name, value in os.environ.items() if name != "CALLBACK_KEY"}
        if key:
            self.environment["CALLBACK_KEY"] = key

    async def line(self):
        return (await soon(self.process.stdout.readline())).decode().strip()

    async def next(self):
        return json.loads(await self.line())

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            self.program, env=self.environment, stdout=asyncio.subprocess.PIPE, limit=1 << 24)
        self.url = await self.line()
        return self

    async def __aexit__(self, *_):
        self.process.kill()
        await self.process.wait()


def sender(url, *subprotocols, **options):
    return connect(url, subprotocols=subprotocols or None, **{"compression": None, "max_size": None, **options})


async def tell(connection, frame):
    """Sends a frame, and reads the answer."""
    await connection.send(frame if isinstance(frame, str) else json.dumps(frame))
    return json.loads(await soon(connection.recv()))


async def end(connection):
    """The code that the receiver closes with; what it sends before that is a failure."""
    try:
        raise Failed(f"an answer instead of a close: {await soon(connection.recv())!r}")
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


def frame(delivery, body, **members):
    return {"id": delivery, "type": "order.completed", "body": body, **members}


async def by_frames(program):
    async with Receiver(program) as receiver, sender(receiver.url, "callback.v1", "cloudevents.json") as connection:
        equal("callback.v1 is picked", connection.subprotocol, "callback.v1")
        members = {"source": "/orders", "subject": "Euro € \U0001f600", "datacontenttype": "application/json", "more": 1}
        equal("what websockets sent is acknowledged", await tell(connection, frame("a", BODY, **members)), {"ack": "a"})
        taken = await receiver.next()
        equal("it has its attributes",
              (taken["id"], taken["type"], taken["source"], taken["subject"], taken["contentType"]),
              ("a", "order.completed", "/orders", members["subject"], "application/json"))
        equal("it has its body, byte for byte", taken["body"], BODY)
        equal("sent again, it is known", await tell(connection, frame("a", BODY)), {"ack": "a"})
        equal("a refusal is a nack", await tell(connection, frame("b", "no")),
              {"nack": "b", "kind": "refused", "reason": "not wanted"})
        equal("what is wanted later is a nack that says when", await tell(connection, frame("c", "later")),
              {"nack": "c", "kind": "later", "reason": "not now", "retryAfter": 7})
        equal("what lacks a body is refused by its id", (await tell(connection, {"id": "d", "type": "a"}))["kind"], "refused")

        await connection.send(json.dumps(frame("e", "x")) + "{}")
        equal("JSON that is none ends the connection with 1008", await end(connection), 1008)

        async with sender(receiver.url, "callback.v1") as connection:
            text = json.dumps(frame("f", "x" * LIMIT))

            async def thirds():
                yield text[:LIMIT // 3]
                await connection.ping()
                yield text[LIMIT // 3:]
            await connection.send(thirds())
            equal("fragments, and a ping between them, are one message", json.loads(await soon(connection.recv())), {"ack": "f"})
            equal("it is the next one, and is whole", len((await receiver.next())["body"]), LIMIT)
            for number in range(1_000):
                await connection.send(json.dumps(frame(f"m{number}", str(number))))
            acked = {json.loads(await soon(connection.recv()))["ack"] for _ in range(1_000)}
            equal("a thousand at once are acknowledged", len(acked), 1_000)
            bodies = {(await receiver.next())["body"] for _ in range(1_000)}
            equal("each came once", len(bodies), 1_000)
            await connection.send(json.dumps(frame("g", "x" * (LIMIT + 1))))
            equal("a body over the limit is 1009", await end(connection), 1009)

        async with sender(receiver.url, "callback.v1") as connection:
            await connection.send(b"{}")
            equal("a binary frame is 1008", await end(connection), 1008)
        async with sender(receiver.url, "callback.v1") as connection:
            await connection.send(json.dumps(frame("h", "x" * (LIMIT * 7))))
            equal("a frame that no body could need is 1009", await end(connection), 1009)
        # The library cannot close what was cut off behind its back.
        connection = await sender(receiver.url, "callback.v1")
        connection.transport.write(b"\x83" + os.urandom(4_096))
        await soon(connection.wait_closed())
        equal("random bytes end a connection with 1002", connection.close_code, 1002)
        async with sender(receiver.url, "callback.v1", compression="deflate") as connection:
            equal("no compression is agreed on", [repr(extension) for extension in connection.protocol.extensions], [])
            equal("it is not needed", await tell(connection, frame("i", "end")), {"ack": "i"})
            equal("a handle that has ended is gone", (await tell(connection, frame("j", "x")))["kind"], "gone")
            equal("what it took before is known", await tell(connection, frame("i", "end")), {"ack": "i"})
        other = await receiver.line()
        unknown = other[:-1] + ("B" if other.endswith("A") else "A")
        for sentence, url, subprotocols, status in [
            ("an unknown handle is 404", unknown, ["callback.v1"], 404),
            ("a path that names no handle is 404", other + "/", ["callback.v1"], 404),
            ("no subprotocol is 400", other, [], 400),
            ("a subprotocol that is not spoken is 400", other, ["cloudevents.avro"], 400),
        ]:
            try:
                async with sender(url, *subprotocols):
                    raise Failed(f"{sentence}: a socket is opened")
            except InvalidStatus as refused:
                equal(sentence, refused.response.status_code, status)


async def by_webhooks(program):
    webhook = Webhook(KEY)

    def signed(delivery, body=BODY, time=None):
        # The library takes the time for UTC, whatever its zone.
        time = time or datetime.now(timezone.utc)
        return frame(delivery, body, timestamp=int(time.timestamp()), signature=webhook.sign(delivery, time, body))

    async with Receiver(program, KEY) as receiver, sender(receiver.url, "callback.v1") as connection:
        refused = {"nack": "a", "kind": "refused", "reason": "the signature is missing or does not count"}
        equal("no signature is refused", await tell(connection, frame("a", BODY)), refused)
        equal("another body is refused", await tell(connection, {**signed("a"), "body": "{}"}), refused)
        equal("another id is refused", await tell(connection, {**signed("b"), "id": "a"}), refused)
        old = signed("a", time=datetime.fromtimestamp(1_614_265_330, timezone.utc))
        equal("an old signature is refused", await tell(connection, old), refused)
        first = signed("a")
        equal("what standardwebhooks signed is taken", await tell(connection, first), {"ack": "a"})
        equal("it has its id", (await receiver.next())["id"], "a")
        equal("replayed, it is known", await tell(connection, first), {"ack": "a"})
        binary = base64.b64encode(BODY.encode()).decode()
        second = {**signed("b"), "body_base64": binary}
        del second["body"]
        equal("the signature is over the bytes of body_base64", await tell(connection, second), {"ack": "b"})
        equal("what was known did not come again", (await receiver.next())["id"], "b")


async def by_cloudevents(program):
    def event(name, data):
        attributes = {
            "id": name,
            "source": "https://github.com/cloudevents/spec/pull",
            "type": "com.github.pull_request.opened",
            "subject": "Euro € \U0001f600",
            "datacontenttype": "application/json",
            "specversion": "1.0",
            "time": datetime.now(timezone.utc),
        }
        return JSONFormat().write(CloudEvent(attributes, data)).decode()

    async with Receiver(program) as receiver, sender(receiver.url, "cloudevents.json") as connection:
        equal("cloudevents.json is picked", connection.subprotocol, "cloudevents.json")
        for _ in range(2):
            await connection.send(event("A 1", {"number": 123}))
            await soon(await connection.ping())
        taken = await receiver.next()
        equal("what the SDK of CloudEvents made is taken before the pong", taken["subject"], "Euro € \U0001f600")
        equal("it has its data", json.loads(taken["body"]), {"number": 123})
        await connection.send(event("A 2", {"number": 124}))
        await soon(await connection.ping())
        equal("sent again, it was known by source and id", json.loads((await receiver.next())["body"]), {"number": 124})
        await connection.send("{}")
        pong = await connection.ping()
        equal("what is no event ends the connection with 1008", await end(connection), 1008)
        equal("and its ping has no pong", pong.done() and pong.exception() is None, False)


async def main(program):
    for senders in (by_frames, by_webhooks, by_cloudevents):
        await senders(program)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        asyncio.run(main(sys.argv[1]))
    except Exception as error:
        sys.exit(f"FAILED {error or type(error).__name__}")
