"""Has our callbacks verified by the standardwebhooks library, which others wrote.

    python scripts/foreign/standardwebhooks.py PATH_OF_ORDER_SERVICE

Starts the service, sends one request with `$rpc.callback`, and reads the acknowledgment and the callback.
Prints a line a check; exits 1 if one fails.
"""

import base64
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# This file has the library's name: while its folder is searched, the import would find this file.
sys.path = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]

from standardwebhooks import Webhook, WebhookVerificationError

PATIENCE = 30.0  # seconds that anything may take

RESULT = {
    "orderId": "12345",
    "status": "completed",
    "totalAmount": 99.99,
    "message": "Your order has been processed successfully.",
}


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


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_listening(port, service):
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if service.poll() is not None:
            raise Failed(f"order-service ended with status {service.returncode} before it listened")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise Failed(f"order-service does not listen after {PATIENCE:.0f} s")


class Receiver(ThreadingHTTPServer):
    """Keeps every POST that comes in: path, headers in lower case, body."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.received = queue.Queue()
        self.url = f"http://127.0.0.1:{self.server_port}/order/callback"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.server.received.put((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def post(url, body):
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"})
    # Without a proxy from the environment: both ends are on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=PATIENCE) as response:
        return response.status, response.read()


def play(port, secret, receiver):
    request = {
        "id": "example_order",
        "method": "OrderService.processOrder",
        "params": {"orderId": "12345", "$rpc.callback": receiver.url},
    }
    status, answer = post(f"http://127.0.0.1:{port}/rpc", json.dumps(request).encode())
    equal("the request is answered 200", status, 200)

    acknowledgment = json.loads(answer)
    equal("the acknowledgment has its three members", sorted(acknowledgment), ["id", "jsonrpc", "result"])
    equal("acknowledgment: jsonrpc", acknowledgment["jsonrpc"], "2.0")
    equal("acknowledgment: id", acknowledgment["id"], "example_order")
    equal("acknowledgment: result holds the callback alone", list(acknowledgment["result"]), ["callback"])
    callback = acknowledgment["result"]["callback"]
    equal("acknowledgment: the callback has its four members", sorted(callback), ["data", "id", "status", "url"])
    equal("acknowledgment: callback.id is a UUID v7", uuid.UUID(callback["id"]).version, 7)
    equal("acknowledgment: callback.url", callback["url"], receiver.url)
    equal("acknowledgment: callback.status", callback["status"], True)
    equal("acknowledgment: callback.data", callback["data"], [])

    try:
        path, headers, body = receiver.received.get(timeout=PATIENCE)
    except queue.Empty:
        raise Failed(f"no callback arrived in {PATIENCE:.0f} s") from None
    equal("the callback arrives at its path", path, "/order/callback")
    equal("the callback names its task", headers.get("ce-subject"), callback["id"])

    webhook = Webhook(secret)
    verified = webhook.verify(body, headers)
    check("standardwebhooks verifies the callback", True)
    expected = {"jsonrpc": "2.0", "id": "example_order", "result": RESULT}
    equal("the callback's body is the whole response", verified, expected)

    changed = body.replace(b"completed", b"cancelled", 1)
    check("a changed body is rejected", changed != body and rejects(webhook, changed, headers))
    check("a changed id is rejected", rejects(webhook, body, {**headers, "webhook-id": headers["webhook-id"] + "x"}))
    check("another secret is rejected", rejects(Webhook(new_secret()), body, headers))


def new_secret():
    return "whsec_" + base64.b64encode(os.urandom(24)).decode()


def main(binary):
    secret = new_secret()
    receiver = Receiver()
    with tempfile.TemporaryDirectory(prefix="standardwebhooks-") as folder:
        port = free_port()
        command = [binary, "serve", "--listen", f"127.0.0.1:{port}", "--store", f"sqlite:{folder}/orders.db"]
        command += ["--secret", secret, "--allow", "127.0.0.0/8", "--work", "10"]
        with open(f"{folder}/output", "w+b") as output:
            service = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            try:
                wait_until_listening(port, service)
                play(port, secret, receiver)
                service.send_signal(signal.SIGTERM)
                equal("order-service ends with status 0 on SIGTERM", service.wait(timeout=PATIENCE), 0)
                return 0
            except Exception as error:
                print(f"FAILED {error or type(error).__name__}", flush=True)
                output.seek(0)
                print("order-service printed:\n" + output.read().decode(errors="replace"), flush=True)
                return 1
            finally:
                if service.poll() is None:
                    service.kill()
                    service.wait()
                receiver.shutdown()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: standardwebhooks.py PATH_OF_ORDER_SERVICE")
    sys.exit(main(sys.argv[1]))
