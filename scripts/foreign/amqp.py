"""Has our messages read from RabbitMQ by pika and the CloudEvents SDK, and verified by standardwebhooks.

    python scripts/foreign/amqp.py PATH_OF_DELIVER

Needs a RabbitMQ at CALLBACK_TEST_AMQP (scripts/rabbitmq). PATH_OF_DELIVER is the example `deliver` of callback-amqp.
Prints a line a check; exits 1 if one fails.
"""

import base64
import json
import os
import subprocess
import sys
import uuid

# A file of this folder has the library's name: while the folder is searched, the import would find that file.
sys.path = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]

import pika
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat
from standardwebhooks import Webhook, WebhookVerificationError

BODIES = ['{"orderId":"12345","status":"completed"}', '{"text":"größer als 0 \U0001f600"}', '{"n":[1,2.50,null]}']


class Failed(Exception):
    """A check did not hold; what follows would only repeat it."""


def check(sentence, holds, found=None):
    if not holds:
        raise Failed(sentence if found is None else f"{sentence}: found {found!r}")
    print(f"ok {sentence}", flush=True)


def equal(sentence, found, expected):
    check(sentence, found == expected and type(found) is type(expected), found)


def rejects(webhook, body, headers):
    try:
        webhook.verify(body, headers)
    except WebhookVerificationError:
        return True
    return False


def read(number, body, message_id, secret, properties, received):
    name = f"message {number}"
    headers = dict(properties.headers)
    equal(f"{name} has its body byte for byte", received.decode(), body)
    equal(f"{name} has its id as message_id", properties.message_id, message_id)
    equal(f"{name} is persistent", properties.delivery_mode, 2)

    webhook = Webhook(secret)
    equal(f"{name} is verified by standardwebhooks", webhook.verify(received, headers), json.loads(body))
    check(f"{name} is refused when its body is changed", rejects(webhook, received + b" ", headers))
    other = dict(headers, **{"webhook-id": str(uuid.uuid4())})
    check(f"{name} is refused under another id", rejects(webhook, received, other))

    # What stands in the properties in AMQP is a header in HTTP.
    event = from_http_event(
        HTTPMessage(headers={**headers, "content-type": properties.content_type}, body=received), JSONFormat()
    )
    equal(f"{name} is an event of its type", event.get_type(), "order.completed")
    equal(f"{name} is an event of its source", event.get_source(), "/orders")
    equal(f"{name} is an event of its subject", event.get_subject(), "Bestellung für 100 %")
    equal(f"{name} is an event of its id", event.get_id(), message_id)
    equal(f"{name} is an event of its correlation id", event.get_extension("correlationid"), "ray 7")
    equal(f"{name} is an event of its data", event.get_data(), json.loads(body))
    equal(f"{name} happened when its timestamp says", int(event.get_time().timestamp()), properties.timestamp)
    equal(f"{name} says the same in its properties", (properties.type, properties.app_id, properties.correlation_id),
          ("order.completed", "/orders", "Bestellung für 100 %"))


def main(deliver):
    url = os.environ["CALLBACK_TEST_AMQP"]
    secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    queue = f"foreign-{uuid.uuid4()}"
    command = subprocess.run([deliver, url, queue], input="\n".join(BODIES), capture_output=True, encoding="utf-8",
                             env=dict(os.environ, CALLBACK_KEY=secret), timeout=60)
    try:
        equal("deliver ends with status 0", command.returncode, 0)
        ids = command.stdout.split()
        equal("deliver names what the broker confirmed", len(ids), len(BODIES))
        connection = pika.BlockingConnection(pika.URLParameters(url + "%2F"))
        channel = connection.channel()
        for number, (body, message_id) in enumerate(zip(BODIES, ids), 1):
            method, properties, received = channel.basic_get(queue, auto_ack=True)
            check(f"message {number} is in the queue", method is not None)
            read(number, body, message_id, secret, properties, received)
        check("nothing else is in the queue", channel.basic_get(queue)[0] is None)
        channel.queue_delete(queue)
        connection.close()
        return 0
    except Exception as error:
        print(f"FAILED {error or type(error).__name__}\ndeliver printed:\n{command.stderr}", flush=True)
        return 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: amqp.py PATH_OF_DELIVER")
    sys.exit(main(sys.argv[1]))
