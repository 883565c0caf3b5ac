"""Sends callbacks to our receiver through RabbitMQ by software that others wrote: pika, standardwebhooks, cloudevents.

    python scripts/foreign/amqp-receiver.py PATH_OF_RECEIVE_AMQP

Needs a RabbitMQ at CALLBACK_TEST_AMQP (scripts/rabbitmq). PATH_OF_RECEIVE_AMQP is the example `receive-amqp` of
callback-amqp. Prints a line a check; exits 1 if one fails.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from datetime import datetime, timezone
from urllib.parse import parse_qs, urlsplit

# A file of this folder has the library's name: while the folder is searched, the import would find that file.
sys.path = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]

import pika
from cloudevents.core.bindings.http import to_binary_event
from cloudevents.core.v1.event import CloudEvent
from standardwebhooks import Webhook

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE = 60  # seconds that anything may take
BODY = '{"orderId":"12345","text":"größer als 0 \U0001f600"}'


class Failed(Exception):
    """A check did not hold; what follows would only repeat it."""


def equal(sentence, found, expected):
    if found != expected:
        raise Failed(f"{sentence}: found {found!r}, not {expected!r}")
    print(f"ok {sentence}", flush=True)


class Receiver:
    """The program, which prints its handle's Dsn, and a line for each callback; a publisher beside it."""

    def __init__(self, program, key=None):
        url = os.environ["CALLBACK_TEST_AMQP"]
        self.queue = f"foreign-{uuid.uuid4()}"
        self.dead = f"dead-{self.queue}"
        self.connection = pika.BlockingConnection(pika.URLParameters(url + "%2F"))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self.channel.exchange_declare(self.dead, "fanout", durable=True)
        self.channel.queue_declare(self.dead, durable=True)
        self.channel.queue_bind(self.dead, self.dead)
        environment = {name: value for name, value in os.environ.items() if name != "CALLBACK_KEY"}
        if key:
            environment["CALLBACK_KEY"] = key
        command = [program, url, self.queue, self.dead]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        place = parse_qs(urlsplit(self.process.stdout.readline().strip()).query)
        (self.exchange,), (self.key,) = place["exchange"], place["routing_key"]

    def publish(self, body, exchange=None, key=None, **properties):
        """Publishes by the handle's Dsn; raises where the broker does not take it, or has no queue for it."""
        self.channel.basic_publish(
            self.exchange if exchange is None else exchange,
            key or self.key,
            body,
            pika.BasicProperties(delivery_mode=2, **properties),
            mandatory=True,
        )

    def next(self):
        return json.loads(self.process.stdout.readline())

    def next_dead(self):
        """The next dead letter's id, and why the broker says that it is one."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            method, properties, _ = self.channel.basic_get(self.dead, auto_ack=True)
            if method:
                return properties.message_id, properties.headers["x-first-death-reason"]
            time.sleep(0.05)
        raise Failed("no dead letter came")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for queue in (self.queue, self.dead):
            self.channel.queue_delete(queue)
        self.channel.exchange_delete(self.dead)
        self.connection.close()


def by_webhooks(program):
    webhook = Webhook(KEY)

    def headers(delivery, body=BODY, at=None):
        # The library takes the time for UTC, whatever its zone.
        at = at or datetime.now(timezone.utc)
        return {
            "webhook-id": delivery,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": webhook.sign(delivery, at, body),
        }

    with Receiver(program, KEY) as receiver:
        signed = headers("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk")
        receiver.publish(BODY, headers=signed, content_type="application/json")
        taken = receiver.next()
        equal("what standardwebhooks signed is taken, by its id", taken["id"], "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk")
        equal("it has its body, byte for byte", taken["body"], BODY)
        equal("it has its content type", taken["contentType"], "application/json")
        receiver.publish(BODY, headers=signed)
        # pika writes numbers as numbers.
        of_old = headers("msg_old", at=datetime.fromtimestamp(1_614_265_330, timezone.utc))
        receiver.publish(BODY, headers={**of_old, "webhook-timestamp": 1_614_265_330})
        equal("sent again, it is known; a message of years ago counts by its signature", receiver.next()["id"], "msg_old")
        receiver.publish("{}", headers=headers("msg_2"), message_id="changed")
        equal("another body is a dead letter", receiver.next_dead(), ("changed", "rejected"))
        receiver.publish(BODY, message_id="unsigned")
        equal("no signature is a dead letter", receiver.next_dead(), ("unsigned", "rejected"))


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
    headers = {name: value for name, value in message.headers.items() if name.startswith("ce-")}
    with Receiver(program) as receiver:
        receiver.publish(message.body, headers=headers, content_type="application/json")
        taken = receiver.next()
        equal("what the SDK of CloudEvents made has its event's id", taken["event"], attributes["id"])
        equal("it has its source", taken["source"], attributes["source"])
        equal("it has its type", taken["type"], attributes["type"])
        equal("it has its subject, decoded", taken["subject"], attributes["subject"])
        equal("it has its data", json.loads(taken["body"]), {"number": 123})
        receiver.publish(message.body, headers=headers)
        receiver.publish(message.body, headers={**headers, "ce-id": "another"})
        equal("sent again, it is known by source and id", receiver.next()["event"], "another")
        receiver.publish(b"x", headers={"ce-specversion": "1.0"}, message_id="half")
        equal("half an event is a dead letter", receiver.next_dead(), ("half", "rejected"))


def by_properties(program):
    with Receiver(program) as receiver:
        handle = receiver.key.rsplit(".", 1)[1]
        receiver.publish("hello", exchange="", key=receiver.queue, correlation_id=handle, message_id="order-1",
                         type="order.completed", app_id="shop", content_type="text/plain")
        taken = receiver.next()
        equal("who knows but the queue names the handle in correlation_id", taken["id"], "order-1")
        equal("type and source are properties", (taken["type"], taken["source"]), ("order.completed", "shop"))
        equal("the handle is no subject", taken["subject"], None)
        equal("the content type is a property", taken["contentType"], "text/plain")
        receiver.publish("no", message_id="refused")
        equal("a refusal is a dead letter", receiver.next_dead(), ("refused", "rejected"))
        receiver.publish("later", message_id="later")
        receiver.publish("at once", message_id="at-once")
        equal("what is wanted later holds up no other", receiver.next()["id"], "at-once")
        equal("it comes again", receiver.next()["id"], "later")
        receiver.publish("x" * 2_000_000, message_id="large")
        equal("what is too large is a dead letter", receiver.next_dead(), ("large", "rejected"))
        receiver.publish("nothing but a body")
        equal("nothing but a body is taken", receiver.next()["body"], "nothing but a body")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        for senders in (by_webhooks, by_cloudevents, by_properties):
            senders(sys.argv[1])
    except Failed as failed:
        print(f"FAILED {failed}", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
