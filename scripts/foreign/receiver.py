"""Sends callbacks to our receiver by software that others wrote: standardwebhooks, the SDK of CloudEvents, curl.

    python scripts/foreign/receiver.py PATH_OF_EXAMPLE_RECEIVE

Prints a line a check; exits 1 if one fails.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import datetime, timezone

# A file beside this one has the library's name: while the folder is searched, the import would find that file.
sys.path = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]

from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from standardwebhooks import Webhook

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE = 30  # seconds that anything may take
BODY = '{"orderId":"12345","text":"größer als 0 \U0001f600"}'


class Failed(Exception):
    """A check did not hold; what follows would only repeat it."""


def equal(sentence, found, expected):
    if found != expected:
        raise Failed(f"{sentence}: found {found!r}, not {expected!r}")
    print(f"ok {sentence}", flush=True)


class Receiver:
    """The program, which prints its URL, and a line for each callback."""

    def __init__(self, program, key=None):
        environment = {name: value for name, value in os.environ.items() if name != "CALLBACK_KEY"}
        if key:
            environment["CALLBACK_KEY"] = key
        self.process = subprocess.Popen([program], env=environment, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()

    def next(self):
        return json.loads(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def post(url, headers, body):
    """Status and headers of the answer."""
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def by_webhooks(program):
    webhook = Webhook(KEY)

    def headers(delivery, body=BODY, time=None):
        # The library takes the time for UTC, whatever its zone.
        time = time or datetime.now(timezone.utc)
        return {
            "content-type": "application/json",
            "webhook-id": delivery,
            "webhook-timestamp": str(int(time.timestamp())),
            "webhook-signature": webhook.sign(delivery, time, body),
        }

    with Receiver(program, KEY) as receiver:
        signed = headers("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk")
        equal("what standardwebhooks signed is taken", post(receiver.url, signed, BODY.encode())[0], 200)
        taken = receiver.next()
        equal("it has its id", taken["id"], "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk")
        equal("it has its body, byte for byte", taken["body"], BODY)
        equal("sent again, it is known", post(receiver.url, signed, BODY.encode())[0], 200)
        equal("another body is 401", post(receiver.url, signed, b"{}")[0], 401)
        old = headers("msg_old", time=datetime.fromtimestamp(1_614_265_330, timezone.utc))
        equal("an old signature is 401", post(receiver.url, old, BODY.encode())[0], 401)
        equal("no signature is 401", post(receiver.url, {}, BODY.encode())[0], 401)
        equal("the next one is taken", post(receiver.url, headers("msg_2"), BODY.encode())[0], 200)
        equal("it is the next one: what was known did not come again", receiver.next()["id"], "msg_2")


def by_cloudevents(program):
    attributes = {
        "id": "A234-1234-1234",
        "source": "https://github.com/cloudevents/spec/pull",
        "type": "com.github.pull_request.opened",
        "subject": "Euro € \U0001f600",
        "datacontenttype": "application/json",
        "specversion": "1.0",
        "time": datetime.now(timezone.utc),
    }
    message = to_binary_event(CloudEvent(attributes, {"number": 123}))
    with Receiver(program) as receiver:
        equal("what the SDK of CloudEvents made is taken", post(receiver.url, message.headers, message.body)[0], 200)
        taken = receiver.next()
        equal("it has its event's id", taken["event"], attributes["id"])
        equal("it has its source", taken["source"], attributes["source"])
        equal("it has its type", taken["type"], attributes["type"])
        equal("it has its subject, decoded", taken["subject"], attributes["subject"])
        equal("it has its data", json.loads(taken["body"]), {"number": 123})
        equal("sent again, it is known by source and id", post(receiver.url, message.headers, message.body)[0], 200)
        other = {**message.headers, "ce-id": "another"}
        equal("another event is taken", post(receiver.url, other, message.body)[0], 200)
        equal("it is the next one", receiver.next()["event"], "another")
        whole = to_structured_event(CloudEvent({**attributes, "id": "whole"}, {"number": 124}))
        equal("an event in structured mode is taken", post(receiver.url, whole.headers, whole.body)[0], 200)
        taken = receiver.next()
        equal("it has its event's attributes", [taken[name] for name in ("event", "type", "subject", "contentType")],
              ["whole", attributes["type"], attributes["subject"], "application/json"])
        equal("its data is the body", json.loads(taken["body"]), {"number": 124})
        equal("sent again, it is known, too", post(receiver.url, whole.headers, whole.body)[0], 200)


def curl(*arguments):
    command = ["curl", "--silent", "--max-time", str(PATIENCE), "--dump-header", "-", *arguments]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    head, _, body = text.replace("\r", "").partition("\n\n")
    if head.split()[1] == "100":
        head, _, body = body.partition("\n\n")
    lines = head.splitlines()
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


def by_curl(program):
    with Receiver(program) as receiver:
        equal("a plain body of curl's is taken", curl("--data", "hello=1", receiver.url)[0], 200)
        taken = receiver.next()
        equal("it has its content type", taken["contentType"], "application/x-www-form-urlencoded")
        equal("it has its body", taken["body"], "hello=1")
        status, headers, body = curl("--data", "no", receiver.url)
        equal("a refusal is 403", (status, json.loads(body)["title"]), (403, "not wanted"))
        equal("it is a problem", headers["content-type"], "application/problem+json")
        status, headers, _ = curl("--data", "later", receiver.url)
        equal("what is wanted later is 503, and when", (status, headers["retry-after"]), (503, "7"))
        status, headers, _ = curl(receiver.url)
        equal("GET is 405, with what is allowed", (status, headers["allow"]), (405, "post, options"))
        ask = ["--request", "OPTIONS", "--header", "webhook-request-origin: sender.example"]
        status, headers, _ = curl(*ask, receiver.url)
        equal("the handshake is answered", (status, headers["webhook-allowed-origin"]), (200, "sender.example"))
        unknown = receiver.url[:-1] + ("B" if receiver.url.endswith("A") else "A")
        equal("an unknown handle is 404", curl("--data", "x", unknown)[0], 404)
        chunked = ["--header", "transfer-encoding: chunked", "--header", "expect: 100-continue"]
        equal("chunks after 100 Continue are taken", curl(*chunked, "--data", "x" * 3000, receiver.url)[0], 200)
        equal("they have their length", len(receiver.next()["body"]), 3000)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        for senders in (by_webhooks, by_cloudevents, by_curl):
            senders(sys.argv[1])
    except Failed as failed:
        print(f"FAILED {failed}", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
