"""Has the HTTP routes of order-service read by programs that others wrote.

    python scripts/foreign/openapi.py PATH_OF_ORDER_SERVICE

schemathesis calls every operation of the served OpenAPI document, well formed and not: no 5xx, no answer that the document
does not name. A HAL client follows the links, and a model of RFC 9457 reads the problems. Prints a line a check; exits 1 if
one fails.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import requests
from contentgrid_hal_client.hal import HALFormsClient, HALLink, HALResponse
from jentic.problem_details import ProblemDetail

PATIENCE = 30.0  # seconds that anything may take

CHECKS = ",".join(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "unsupported_method",
    ]
)


class Failed(Exception):
    """A check did not hold; what follows would only repeat it."""


def check(sentence, holds, found=None):
    if not holds:
        raise Failed(sentence if found is None else f"{sentence}: found {found!r}")
    print(f"ok {sentence}", flush=True)


def start(program):
    """The service, and where it listens."""
    arguments = ["serve", "--listen", "127.0.0.1:0", "--store", "memory:", "--work", "0", "--log", "error"]
    service = subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, text=True)
    line = service.stdout.readline()
    found = re.search(r"http://[0-9.:]+", line)
    check("order-service says where it listens", found is not None, line)
    return service, found.group(0)


def by_schemathesis(base):
    command = [
        os.path.join(os.path.dirname(sys.executable), "schemathesis"),
        "run",
        f"{base}/openapi.json",
        f"--checks={CHECKS}",
        "--max-examples=40",
        "--seed=1",
        "--generation-database=none",
        "--no-color",
        "--continue-on-failure",
    ]
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if run.returncode != 0:
        print(run.stdout[-8000:], run.stderr[-2000:], sep="\n")
    check("schemathesis finds no 5xx and no undocumented answer", run.returncode == 0)
    selected, tested = re.search(r"Selected: \d+/(\d+)\s+Tested: (\d+)", run.stdout).groups()
    check(f"schemathesis called all {tested} operations", selected == tested, selected)


def by_hal(base):
    client = HALFormsClient(base, session_cookie="none")
    answer = client.post("/orders", json={"orderId": "7"}, headers={"Prefer": "respond-async"})
    check("an order is accepted as HAL", answer.headers["content-type"] == "application/hal+json", answer.headers)
    task = HALResponse(answer.json())
    check("its link is where it is", task.get_self_link().uri == answer.headers["location"])
    until = time.monotonic() + PATIENCE
    while True:
        answer = client.get(task.get_self_link().uri, allow_redirects=False)
        task = HALResponse(answer.json())
        if task.has_link("result"):
            break
        check("the result comes in time", time.monotonic() < until)
        time.sleep(0.05)
    check("a task with a result redirects to it", answer.status_code == 303, answer.status_code)
    result = client.follow_link(task.get_link("result")).data
    check("the link is followed to the result", result["orderId"] == "7", result)
    result = client.get(task.get_self_link().uri).json()
    check("the redirect is followed to the result", result["orderId"] == "7", result)

    for number in range(3):
        wish = {"callbackUrl": f"https://example.com/{number}"}
        created = HALResponse(client.post("/subscriptions", json=wish).json())
        read = client.follow_link(created.get_self_link())
        check(f"subscription {number} is where its link points", read.data["UUID"] == created.data["UUID"])
    page = client.follow_link(HALLink(name="list", uri="/subscriptions?limit=2"))
    found = page.get_embedded_objects_by_key("subscriptions")
    check("a page has two", len(found) == 2, len(found))
    rest = client.follow_link(page.get_link("next")).get_embedded_objects_by_key("subscriptions")
    check("the link next has the rest", len(rest) >= 1 and rest[0].data["UUID"] not in [one.data["UUID"] for one in found])


def by_problem(base):
    def problem(method, path, status, **arguments):
        answer = requests.request(method, base + path, timeout=PATIENCE, **arguments)
        read = ProblemDetail.model_validate(answer.json())
        sentence = f"{method} {path}: {read.type}"
        check(sentence, answer.headers["content-type"] == "application/problem+json", answer.headers)
        check(f"{sentence}: the status is the answer's", read.status == answer.status_code == status, answer.status_code)
        explained = requests.get(base + read.type, timeout=PATIENCE)
        check(f"{sentence}: it is explained where it points", explained.status_code == 200 and read.title in explained.text)
        return read

    problem("GET", "/tasks/1", 404)
    problem("POST", "/tasks/1", 405)
    problem("GET", "/tasks/1?follow=maybe", 400)
    problem("POST", "/orders", 403, json={"orderId": "7", "callbackUrl": "https://10.0.0.1/"})
    read = problem("POST", "/orders", 422, json={"orderId": "7", "callbackUrl": "no url"})
    check("the place is a pointer", [error.pointer for error in read.errors] == ["#/callbackUrl"], read.errors)
    read = problem("POST", "/subscriptions", 422, json={"kind": "twice", "lease": 0})
    check("each place has its pointer", len(read.errors) == 2, read.errors)
    problem("POST", "/subscriptions", 415, data="x")


def main():
    service, base = start(sys.argv[1])
    try:
        by_hal(base)
        by_problem(base)
        by_schemathesis(base)
        service.send_signal(signal.SIGTERM)
        check("order-service ends by itself", service.wait(PATIENCE) == 0)
    finally:
        service.kill()
        service.wait()


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        print(f"FAILED {failed}")
        sys.exit(1)
