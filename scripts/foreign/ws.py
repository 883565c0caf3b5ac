"""Has our frames taken by servers of the `websockets` library: good ones, and some of every bad kind.

    python scripts/foreign/ws.py PATH_OF_SEND

PATH_OF_SEND is the example `send` of callback-ws. What the good servers get is verified by standardwebhooks and read by
the CloudEvents SDK. Prints a line a check; exits 1 if one fails.
"""

import asyncio
import base64
import json
import os
import sys

# A file of this folder has the library's name: while the folder is searched, the import would find that file.
sys.path = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]

from cloudevents.core.formats.json import JSONFormat
from standardwebhooks import Webhook, WebhookVerificationError
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

PATIENCE = 60  # seconds that anything may take
BODIES = ['{"orderId":"12345","status":"completed"}', '{"text":"größer als 0 \U0001f600"}', '{"n":[1,2.50,null]}']
SECRET = "whsec_" + base64.b64encode(os.urandom(32)).decode()


class Failed(Exception):
    """A check did not hold; what follows would only repeat it."""


def check(sentence, holds, found=None):
    if not holds:
        raise Failed(sentence if found is None else f"{sentence}: found {found!r}")
    print(f"ok {sentence}", flush=True)


def equal(sentence, found, expected):
    check(sentence, found == expected and type(found) is type(expected), found)


def verify(name, webhook, body, headers):
    equal(f"{name} is verified by standardwebhooks", webhook.verify(body, headers), json.loads(body))
    try:
        webhook.verify(body + b" ", headers)
    except WebhookVerificationError:
        return
    raise Failed(f"{name} is verified although its body was changed")


class Server:
    """What each path does with its connections, and what it got."""

    def __init__(self):
        self.received = {}
        self.failures = []

    def took(self, path, frame):
        self.received.setdefault(path, []).append(frame)

    async def handle(self, connection):
        path = connection.request.path
        try:
            await getattr(self, path.strip("/").split("/")[0])(connection, path)
        except ConnectionClosed:
            pass
        except Exception as error:  # It is told after the run: here nobody would see it.
            self.failures.append(f"{path}: {error!r}")

    async def acks(self, connection, path):
        async for frame in connection:
            self.took(path, frame)
            await connection.send(json.dumps({"ack": json.loads(frame)["id"], "more": True}))

    async def backwards(self, connection, path):
        frames = []
        async for frame in connection:
            frames.append(frame)
            if len(frames) == 200:
                for frame in reversed(frames):
                    await connection.send(json.dumps({"ack": json.loads(frame)["id"]}))
                frames = []

    async def reads(self, connection, path):
        async for frame in connection:
            self.took(path, frame)

    async def refuses(self, connection, path):
        async for frame in connection:
            await connection.send(json.dumps({"nack": json.loads(frame)["id"], "kind": "refused", "reason": "no"}))

    async def deaf(self, connection, path):
        # Neither frames nor pings are read any more, and the connection stays open.
        connection.transport.pause_reading()
        await asyncio.sleep(PATIENCE)

    async def garbage(self, connection, path):
        await connection.recv()
        await connection.send("\u0000 no answer \U0001f600")
        await connection.wait_closed()
        self.took(path, connection.close_code)

    async def broken(self, connection, path):
        await connection.recv()
        connection.transport.write(os.urandom(65_536))
        await connection.wait_closed()

    async def large(self, connection, path):
        await connection.recv()
        await connection.send("x" * (100 << 20))

    async def slow(self, connection, path):
        async for frame in connection:
            await asyncio.sleep(0.02)
            await connection.send(json.dumps({"ack": json.loads(frame)["id"]}))

    async def closes(self, connection, path):
        await connection.recv()
        await connection.close(int(path.rsplit("/", 1)[1]), "because")

    async def poisoned(self, connection, path):
        async for frame in connection:
            frame = json.loads(frame)
            if frame["body"] == '"poison"':
                await connection.close(int(path.rsplit("/", 1)[1]))
                return
            self.took(path, frame["id"])
            await connection.send(json.dumps({"ack": frame["id"]}))


async def main(program):
    server = Server()
    limits = {"max_size": 1 << 22, "max_queue": 1, "compression": None}
    async with serve(server.handle, "127.0.0.1", 0, subprotocols=["callback.v1"], **limits) as acking, \
            serve(server.handle, "127.0.0.1", 0, subprotocols=["cloudevents.json"], **limits) as events, \
            serve(server.handle, "127.0.0.1", 0, **limits) as bare:

        async def send(listener, path, lines, seconds=20):
            """What became of each line, in their order: a list of (id, end)."""
            port = listener.sockets[0].getsockname()[1]
            process = await asyncio.create_subprocess_exec(
                program, f"ws://127.0.0.1:{port}/{path}", str(seconds), stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env=dict(os.environ, CALLBACK_KEY=SECRET))
            try:
                out, err = await asyncio.wait_for(process.communicate("\n".join(lines).encode()), PATIENCE)
            except asyncio.TimeoutError:
                process.kill()
                raise Failed(f"send does not end at /{path}")
            if process.returncode:
                raise Failed(f"send ends with {process.returncode} at /{path}: {err.decode()}")
            return [tuple(line.split(" ", 1)) for line in out.decode().splitlines()]

        async def ends(sentence, listener, path, lines, expected, seconds=20):
            found = [end for _, end in await send(listener, path, lines, seconds)]
            check(sentence, found == [expected] * len(lines), found[:3])

        webhook = Webhook(SECRET)
        ended = await send(acking, "acks", BODIES)
        equal("a server that acknowledges has them", [end for _, end in ended], ["Acknowledged"] * len(BODIES))
        frames = {json.loads(frame)["body"]: json.loads(frame) for frame in server.received["/acks"]}
        for (message_id, _), body in zip(ended, BODIES):
            frame = frames[body]
            headers = {"webhook-id": frame["id"], "webhook-timestamp": str(frame["timestamp"]),
                       "webhook-signature": frame["signature"]}
            verify(f"the frame of {body}", webhook, frame["body"].encode(), headers)
            equal("its id is the delivery's", frame["id"], message_id)

        ended = await send(events, "reads", BODIES)
        equal("a server that answers pings has them", [end for _, end in ended], ["Pong"] * len(BODIES))
        ids = {message_id for message_id, _ in ended}
        for frame in server.received["/reads"]:
            event = JSONFormat().read(None, frame)
            name = f"the event {event.get_data()!r}"
            extension = event.get_extension
            headers = {"webhook-id": extension("webhookid"), "webhook-timestamp": extension("webhooktimestamp"),
                       "webhook-signature": extension("webhooksignature")}
            body = base64.b64decode(json.loads(frame)["data_base64"])
            verify(name, webhook, body, headers)
            check(f"{name} has an id of a delivery", event.get_id() in ids)
            equal(f"{name} has its type", event.get_type(), "order.completed")
            equal(f"{name} has its subject", event.get_subject(), "Bestellung für 100 %")
            equal(f"{name} has its correlation id", extension("correlationid"), "ray 7")
        check("each event came once", len(server.received["/reads"]) == len(BODIES))

        server.received.clear()
        await ends("without a subprotocol a pong is the evidence", bare, "reads", BODIES, "Pong")
        equal("the frames are the bodies", sorted(server.received["/reads"]), sorted(BODIES))

        many = [json.dumps(number) for number in range(1_000)]
        await ends("acknowledgments come in any order", acking, "backwards", many, "Acknowledged")
        await ends("a refusal is told", acking, "refuses", BODIES, "refused (answer): the peer refuses the message")
        late = "timed out (answer): no answer in time"
        await ends("what is never acknowledged times out", acking, "reads", BODIES, late, seconds=1)
        await ends("who answers no ping has nothing", events, "deaf", BODIES, late, seconds=1)
        await ends("who reads nothing acknowledges nothing", acking, "deaf", BODIES, late, seconds=1)
        await ends("garbage is no acknowledgment", acking, "garbage", ["1"],
                   "unavailable (answer): the peer sent what is no answer")
        check("garbage is answered with 1008", set(server.received["/garbage"]) == {1008}, server.received["/garbage"])
        for end in [end for _, end in await send(acking, "broken", ["1"])]:
            check("what is no frame ends a connection", end.startswith("unavailable (answer): "), end)
        await ends("100 MiB are not read", acking, "large", ["1"],
                   "unavailable (answer): the peer sent a frame that is too large")
        await ends("a slow reader gets all", acking, "slow", [json.dumps("x" * 200_000)] * 64, "Acknowledged")

        for code, kind in [(1000, "unavailable"), (1001, "unavailable"), (1002, "unavailable"), (1003, "refused"),
                           (1007, "refused"), (1008, "refused"), (1009, "too large"), (1010, "unavailable"),
                           (1011, "unavailable"), (1012, "unavailable"), (1013, "throttled"),
                           (3000, "unavailable"), (4999, "unavailable")]:
            await ends(f"a close with {code} is {kind}", acking, f"closes/{code}", ["1"],
                       f"{kind} (answer): the peer closed the connection with {code}")

        for code, kind in [(1003, "refused"), (1007, "refused"), (1008, "refused"), (1009, "too large")]:
            lines = [json.dumps("poison" if number == 100 else "food") for number in range(256)]
            ended = await send(acking, f"poisoned/{code}", lines)
            others = {end for number, (_, end) in enumerate(ended) if number != 100}
            equal(f"one poison frame among 256 that ends in {code} costs nobody else a message", others, {"Acknowledged"})
            check(f"the poison is {kind}", ended[100][1].startswith(f"{kind} (answer)"), ended[100][1])
            taken = set(server.received[f"/poisoned/{code}"])
            check("the server has all others", taken >= {name for at, (name, _) in enumerate(ended) if at != 100})
        check("no server failed", not server.failures, server.failures)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: ws.py PATH_OF_SEND")
    try:
        asyncio.run(main(sys.argv[1]))
    except Exception as error:
        sys.exit(f"FAILED {error or type(error).__name__}")
