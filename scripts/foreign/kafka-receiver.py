"""Sends callbacks to our receiver by the clients of others: confluent-kafka, cloudevents and standardwebhooks.

    scripts/kafka run python scripts/foreign/kafka-receiver.py PATH_OF_EXAMPLE_RECEIVE_KAFKA

Makes topics, writes records to them, and reads what the example prints. One receiver has no right but to read its topic.
Prints a line a check; exits 1 if one fails.
"""

import base64
import datetime
import json
import os
import subprocess
import sys
import threading
import uuid
from urllib.parse import parse_qs, urlsplit

# Other files in this folder have the names of libraries.
sys.path = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]

from cloudevents.core.bindings.kafka import to_binary
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from standardwebhooks import Webhook

PATIENCE = 30.0  # seconds that anything may take
BODY = '{"orderId":"12345","text":"größer als 0 \U0001f600"}'


class Failed(Exception):
    """A check did not hold; what follows would only repeat it."""


def equal(sentence, found, expected):
    if found != expected:
        raise Failed(f"{sentence}: found {found!r}, not {expected!r}")
    print(f"ok {sentence}", flush=True)


class Receiver:
    """The program, which prints its DSN, and a line for each callback."""

    def __init__(self, program, brokers, topic, **variables):
        ours = ("CALLBACK_KEY", "KAFKA_USER", "KAFKA_PASSWORD")
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        command = [program, brokers, topic]
        self.process = subprocess.Popen(command, env=environment | variables, stdout=subprocess.PIPE, text=True)
        # A line that does not come ends the wait.
        self.watch = threading.Timer(4 * PATIENCE, self.process.kill)
        self.watch.start()
        self.dsn = self.line()

    def line(self):
        line = self.process.stdout.readline().strip()
        if not line:
            raise Failed("the receiver has ended, or nothing came")
        return line

    def next(self):
        return json.loads(self.line())

    def key(self):
        return parse_qs(urlsplit(self.dsn).query)["key"][0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.watch.cancel()
        self.process.kill()
        self.process.wait()


class Topic:
    """A topic of one's own, and a producer for it."""

    def __init__(self, brokers, partitions=2):
        self.brokers, self.name = brokers, f"foreign.{uuid.uuid4()}"
        admin = AdminClient({"bootstrap.servers": brokers})
        admin.create_topics([NewTopic(self.name, partitions, 1)])[self.name].result(PATIENCE)
        self.producer = Producer({"bootstrap.servers": brokers})

    def write(self, key, value, headers):
        self.producer.produce(self.name, key=key, value=value, headers=headers)
        if self.producer.flush(PATIENCE) != 0:
            raise Failed("a record was not written")


def by_webhooks(program, brokers):
    secret = "whsec_" + base64.b64encode(os.urandom(24)).decode()
    webhook = Webhook(secret)

    def headers(delivery, time=None):
        # The library takes the time for UTC, whatever its zone.
        time = time or datetime.datetime.now(datetime.timezone.utc)
        return {
            "content-type": "application/json",
            "webhook-id": delivery,
            "webhook-timestamp": str(int(time.timestamp())),
            "webhook-signature": webhook.sign(delivery, time, BODY),
        }

    topic = Topic(brokers)
    with Receiver(program, brokers, topic.name, CALLBACK_KEY=secret) as receiver:
        key = receiver.key()
        topic.write(key, BODY.encode(), headers("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk"))
        taken = receiver.next()
        equal("what standardwebhooks signed is taken", taken["id"], "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk")
        equal("it has its body, byte for byte", taken["body"], BODY)
        equal("it has its content type", taken["contentType"], "application/json")
        topic.write(key, BODY.encode(), headers("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk"))
        topic.write(key, b"{}", headers("msg_changed"))
        topic.write(key, BODY.encode(), {})
        topic.write(key, BODY.encode(), {"webhook-id": "msg_unsigned"})
        topic.write(key, None, headers("msg_tombstone"))
        topic.write("order-42", BODY.encode(), headers("msg_other"))
        old = datetime.datetime.fromtimestamp(1_614_265_330, datetime.timezone.utc)
        topic.write(key, BODY.encode(), headers("msg_old", old))
        equal("of all those the next that is taken is an old one, signed", receiver.next()["id"], "msg_old")


def by_cloudevents(program, brokers):
    attributes = {
        "id": "A234-1234-1234",
        "source": "https://github.com/cloudevents/spec/pull",
        "type": "com.github.pull_request.opened",
        "subject": "Euro € \U0001f600",
        "datacontenttype": "application/json",
        "specversion": "1.0",
        "time": datetime.datetime.now(datetime.timezone.utc),
    }
    topic = Topic(brokers)
    with Receiver(program, brokers, topic.name) as receiver:
        for event_id in [attributes["id"], attributes["id"], "another"]:
            event = CloudEvent(attributes | {"id": event_id}, {"number": 123})
            message = to_binary(event, JSONFormat(), lambda _: receiver.key())
            topic.write(message.key, message.value, message.headers)
        taken = receiver.next()
        equal("what the SDK of CloudEvents made is taken", taken["event"], attributes["id"])
        equal("it has its source", taken["source"], attributes["source"])
        equal("it has its type", taken["type"], attributes["type"])
        equal("it has its subject", taken["subject"], attributes["subject"])
        equal("it has its data", json.loads(taken["body"]), {"number": 123})
        equal("written again, it is known by source and id", receiver.next()["event"], "another")
        topic.write(receiver.key(), b"later", {"webhook-id": "msg_later"})
        equal("what is wanted later is offered again", receiver.next()["id"], "msg_later")


def with_least_rights(program, brokers):
    topic = Topic(brokers)
    read = AclBinding(
        ResourceType.TOPIC,
        topic.name,
        ResourcePatternType.LITERAL,
        "User:mallory",
        "*",
        AclOperation.READ,
        AclPermissionType.ALLOW,
    )
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_acls([read])[read].result(PATIENCE)
    user = {"KAFKA_USER": "mallory", "KAFKA_PASSWORD": "mallory-secret"}
    with Receiver(program, os.environ["CALLBACK_TEST_KAFKA_SASL"], topic.name, **user) as receiver:
        topic.write(receiver.key(), b"hello", {"webhook-id": "msg_1"})
        equal("the right to read the topic is enough", receiver.next()["id"], "msg_1")


def main(program):
    brokers = os.environ.get("CALLBACK_TEST_KAFKA")
    if brokers is None:
        sys.exit("CALLBACK_TEST_KAFKA is not set: scripts/kafka run sets it")
    try:
        for senders in (by_webhooks, by_cloudevents, with_least_rights):
            senders(program, brokers)
    except Exception as error:
        print(f"FAILED {error or type(error).__name__}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: kafka-receiver.py PATH_OF_RECEIVE_KAFKA")
    sys.exit(main(sys.argv[1]))
