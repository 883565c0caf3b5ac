"""Has our records read by the clients of others: confluent-kafka, cloudevents and standardwebhooks.

    scripts/kafka run python scripts/foreign/kafka.py PATH_OF_PUBLISH

Makes a topic, has the example `publish` of callback-kafka send to it, and reads the record.
Prints a line a check; exits 1 if one fails.
"""

import base64
import datetime
import os
import subprocess
import sys
import uuid

# Other files in this folder have the names of libraries.
sys.path = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]

from cloudevents.core.bindings.kafka import KafkaMessage, from_binary
from cloudevents.core.formats.json import JSONFormat
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from standardwebhooks import Webhook, WebhookVerificationError

PATIENCE = 30.0  # seconds that anything may take

SUBJECT = "Bestellung 12345 für Zoë"


class Failed(Exception):
    """A check did not hold; what follows would only repeat it."""


def equal(sentence, found, expected):
    if found != expected or type(found) is not type(expected):
        raise Failed(f"{sentence}: found {found!r}")
    print(f"ok {sentence}", flush=True)


def rejects(webhook, body, headers):
    try:
        webhook.verify(body, headers)
    except WebhookVerificationError:
        return True
    return False


def read(brokers, topic):
    """All records of the topic's only partition."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "foreign", "enable.auto.commit": False})
    try:
        _, high = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=PATIENCE)
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        records = []
        while len(records) < high:
            record = consumer.poll(PATIENCE)
            if record is None or record.error():
                raise Failed(f"the record cannot be read: {record and record.error()}")
            records.append(record)
        return records
    finally:
        consumer.close()


def play(publish, brokers, topic, secret):
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(PATIENCE)
    command = [publish, brokers, topic]
    environment = {**os.environ, "CALLBACK_KEY": secret}
    sent = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2 * PATIENCE)
    if sent.returncode != 0:
        raise Failed(f"publish ended with status {sent.returncode}: {sent.stderr}")
    delivery_id = sent.stdout.split()[0]

    records = read(brokers, topic)
    equal("confluent-kafka reads one record", len(records), 1)
    record = records[0]
    headers = dict(record.headers())
    equal("no header comes twice", len(headers), len(record.headers()))
    equal("the key is the subject", record.key().decode(), SUBJECT)

    event = from_binary(KafkaMessage(headers=headers, key=record.key(), value=record.value()), JSONFormat())
    equal("cloudevents reads the specversion", event.get_specversion(), "1.0")
    equal("cloudevents reads the id", event.get_id(), delivery_id)
    equal("cloudevents reads the type", event.get_type(), "order.completed")
    equal("cloudevents reads the source", event.get_source(), "/orders")
    equal("cloudevents reads the subject", event.get_subject(), SUBJECT)
    equal("cloudevents reads the content type", event.get_datacontenttype(), "application/json")
    equal("cloudevents reads the extension correlationid", event.get_extension("correlationid"), "ray 7")
    equal("cloudevents reads the data", event.get_data(), {"orderId": "12345", "status": "completed"})
    age = datetime.datetime.now(datetime.timezone.utc) - event.get_time()
    equal("cloudevents reads the time", abs(age.total_seconds()) < 2 * PATIENCE, True)

    signed = {name: headers[name].decode() for name in ["webhook-id", "webhook-timestamp", "webhook-signature"]}
    equal("the delivery's id is the event's", signed["webhook-id"], delivery_id)
    verified = Webhook(secret).verify(record.value(), signed)
    equal("standardwebhooks verifies the record", verified, event.get_data())
    changed = record.value().replace(b"completed", b"cancelled", 1)
    equal("a changed body is rejected", rejects(Webhook(secret), changed, signed), True)
    equal("another secret is rejected", rejects(Webhook(new_secret()), record.value(), signed), True)


def new_secret():
    return "whsec_" + base64.b64encode(os.urandom(24)).decode()


def main(publish):
    brokers = os.environ.get("CALLBACK_TEST_KAFKA")
    if brokers is None:
        sys.exit("CALLBACK_TEST_KAFKA is not set: scripts/kafka run sets it")
    try:
        play(publish, brokers, f"foreign.{uuid.uuid4()}", new_secret())
    except Exception as error:
        print(f"FAILED {error or type(error).__name__}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: kafka.py PATH_OF_PUBLISH")
    sys.exit(main(sys.argv[1]))
