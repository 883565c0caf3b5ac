"""Sends results through order-service to a broker that is killed meanwhile, and counts at the broker what arrived.

    python scripts/foreign/soak.py amqp|kafka PATH_OF_ORDER_SERVICE RESULTS KILLS

Wants the broker of `scripts/rabbitmq run` or `scripts/kafka run`. Calls go out in batches, each with
`"$rpc.callback": true`; accepted is what was acknowledged with a task id; the broker is killed with SIGKILL each time that
another part of the results has arrived, and started again. A consumer of another make reads the queue or topic to its
end, and looks for each id that was acknowledged.

Prints as its last line `lost N duplicated N accepted N kills N`; exits 1 if anything was lost.
"""

import collections
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

CALLS = 100  # a batch
SENDERS = 4
DOWN = 2.0  # seconds that a broker stays dead
PATIENCE = 900.0  # seconds until what has not arrived is lost: after a second failure a message waits for five minutes
START = 120.0  # seconds that a broker or the service may take to start

NAME = "orders.soak"


class Rabbit:
    """A durable queue of RabbitMQ, read by pika."""

    kind = "amqp"
    topic = f"amqp:///?queue={NAME}"

    def __init__(self):
        import pika

        self.pika = pika
        self.url = os.environ["CALLBACK_TEST_AMQP"]
        self.folder = os.environ["CALLBACK_TEST_RABBITMQ"]
        with self.connect() as connection:
            connection.channel().queue_declare(NAME, durable=True)

    def connect(self):
        return self.pika.BlockingConnection(self.pika.URLParameters(self.url))

    def service_arguments(self):
        return ["--amqp", self.url]

    def kill(self):
        with open(os.path.join(self.folder, "pid"), encoding="utf-8") as file:
            os.kill(int(file.read()), signal.SIGKILL)
        time.sleep(DOWN)
        subprocess.run([os.path.join(self.folder, "start")], check=True, timeout=START, stdin=subprocess.DEVNULL)

    def read(self, seen, is_over):
        """Counts ids until it is over; a message that is not acknowledged comes again to nobody but us."""
        while not is_over():
            try:
                with self.connect() as connection:
                    channel = connection.channel()
                    channel.basic_qos(prefetch_count=1_000)
                    for method, properties, _ in channel.consume(NAME, inactivity_timeout=1.0):
                        if method is not None:
                            seen[properties.correlation_id] += 1
                            channel.basic_ack(method.delivery_tag)
                        if is_over():
                            return
            except self.pika.exceptions.AMQPError:
                time.sleep(0.2)


class Kafka:
    """A topic of Kafka, read by confluent-kafka."""

    kind = "kafka"
    topic = f"kafka:///{NAME}"

    def __init__(self):
        import confluent_kafka
        import confluent_kafka.admin

        self.kafka = confluent_kafka
        self.brokers = os.environ["CALLBACK_TEST_KAFKA"]
        self.folder = os.environ["CALLBACK_TEST_KAFKA_FOLDER"]
        admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": self.brokers})
        topic = confluent_kafka.admin.NewTopic(NAME, num_partitions=4, replication_factor=1)
        admin.create_topics([topic])[NAME].result(START)

    def service_arguments(self):
        return ["--kafka", self.brokers]

    def kill(self):
        # Whoever runs the node starts it again.
        with open(os.path.join(self.folder, "pid"), encoding="utf-8") as file:
            os.kill(int(file.read()), signal.SIGKILL)

    def read(self, seen, is_over):
        consumer = self.kafka.Consumer({"bootstrap.servers": self.brokers, "group.id": NAME, "enable.auto.commit": False})
        # By hand and from the beginning: no group is needed, and no record is passed over.
        consumer.assign([self.kafka.TopicPartition(NAME, partition, 0) for partition in range(4)])
        while not is_over():
            for record in consumer.consume(num_messages=1_000, timeout=1.0):
                if record.error() is None:
                    headers = dict(record.headers() or [])
                    seen[headers["ce_subject"].decode()] += 1
        consumer.close()


def send(address, first, calls):
    """The ids of the tasks that were accepted of a batch."""
    batch = [
        {
            "jsonrpc": "2.0",
            "id": first + number,
            "method": "OrderService.processOrder",
            "params": {"orderId": str(first + number), "$rpc.callback": True},
        }
        for number in range(calls)
    ]
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", "/rpc", json.dumps(batch), {"content-type": "application/json"})
        answers = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    answers = answers if isinstance(answers, list) else [answers]
    return [answer["result"]["callback"]["id"] for answer in answers if "result" in answer]


def main():
    kind, program, results, kills = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    broker = {"amqp": Rabbit, "kafka": Kafka}[kind]()
    accepted, seen = set(), collections.Counter()
    lock, done = threading.Lock(), threading.Event()

    with tempfile.TemporaryDirectory(prefix="callback-soak-") as folder:
        arguments = [program, "serve", "--listen", "127.0.0.1:0", "--store", f"sqlite:{folder}/orders.db", "--work", "0"]
        arguments += ["--topic", broker.topic, *broker.service_arguments()]
        service = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        try:
            address = urllib.parse.urlsplit(re.search(r"http://\S+", service.stdout.readline()).group()).netloc
            reader = threading.Thread(target=broker.read, args=(seen, done.is_set))
            reader.start()
            began = time.monotonic()

            def sender(number):
                first = number * 1_000_000_000
                while len(accepted) < results:
                    try:
                        ids = send(address, first, CALLS)
                    except (OSError, http.client.HTTPException, ValueError):
                        ids = []
                    first += CALLS
                    with lock:
                        accepted.update(ids)
                    if not ids:
                        time.sleep(0.2)

            senders = [threading.Thread(target=sender, args=(number,)) for number in range(SENDERS)]
            for thread in senders:
                thread.start()
            killed = 0
            while killed < kills:
                # Spread over what arrives, so that each finds messages on their way.
                if len(seen) * (kills + 1) >= results * (killed + 1):
                    broker.kill()
                    killed += 1
                    print(f"{time.monotonic() - began:6.1f} s  kill {killed}: accepted {len(accepted)}, arrived {len(seen)}", flush=True)
                elif service.poll() is not None:
                    raise SystemExit(f"order-service ended with status {service.returncode}")
                else:
                    time.sleep(0.01)
            for thread in senders:
                thread.join()
            print(f"{time.monotonic() - began:6.1f} s  all sent: accepted {len(accepted)}, arrived {len(seen)}", flush=True)

            until = time.monotonic() + PATIENCE
            while time.monotonic() < until and service.poll() is None and any(id not in seen for id in accepted):
                time.sleep(1.0)
            done.set()
            reader.join()
            print(f"{time.monotonic() - began:6.1f} s  arrived {len(seen)}", flush=True)
        finally:
            done.set()
            service.terminate()
            service.wait(60)

    lost = sum(1 for id in accepted if id not in seen)
    duplicated = sum(times - 1 for times in seen.values())
    print(f"lost {lost} duplicated {duplicated} accepted {len(accepted)} kills {killed}")
    sys.exit(lost != 0)


if __name__ == "__main__":
    main()
