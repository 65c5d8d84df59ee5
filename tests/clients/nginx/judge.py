"""Judges nginx, as a gateway that only passes on and as one that fails over: it keeps some points of the contract and
cannot keep others, and `conformance` must say so. nginx runs on loopback with a configuration of its own, until the end.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = pathlib.Path(os.environ.get("BALANCER") or ROOT / "target/release/claude-code-balancer")
NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")

CONFIG = """
user root;
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream gateway {{ {servers} }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://gateway;
      proxy_set_header Host 127.0.0.1:{first};
      {location}
    }}
  }}
}}
"""

FAILOVER = "proxy_next_upstream error timeout http_500 http_502 http_503 http_504 http_429 http_403 non_idempotent;"


def neighbours():
    """A free port whose neighbour is free as well."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 1))
                return port
            except OSError:
                continue


def judged(failover):
    """The verdicts, by number."""
    port, first = neighbours(), neighbours()
    backup = f"server 127.0.0.1:{first + 1} backup max_fails=0;" if failover else ""
    with tempfile.TemporaryDirectory(prefix="nginx-") as folder:
        # Its worker may be somebody else.
        os.chmod(folder, 0o755)
        config = pathlib.Path(folder, "nginx.conf")
        config.write_text(CONFIG.format(
            folder=folder, port=port, first=first, location=FAILOVER if failover else "",
            servers=f"server 127.0.0.1:{first} max_fails=0; {backup}",
        ))
        errors = subprocess.DEVNULL
        nginx = subprocess.Popen([NGINX, "-p", folder, "-c", str(config)], stdin=subprocess.DEVNULL, stderr=errors)
        try:
            command = [str(BINARY), "conformance", "--target", f"http://127.0.0.1:{port}", "--upstream-port", str(first)]
            command += ["--failover"] if failover else []
            run = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, timeout=240)
        finally:
            nginx.terminate()
            nginx.wait(timeout=20)
    assert run.returncode == 1, f"some points must fail: {run.returncode}\n{run.stderr}"
    report = json.loads(run.stdout)
    points = {point["number"]: point for point in report["points"]}
    assert sorted(points) == list(range(1, 61)) and all(point["seen"] for point in points.values())
    for verdict in ("fail", "not_applicable"):
        print(f"  {verdict}: {[number for number, point in points.items() if point['verdict'] == verdict]}")
    print(f"  {report['passed']} passed, {report['failed']} failed, {report['not_applicable']} not applicable")
    return points


def expect(points, verdict, numbers):
    for number in numbers:
        point = points[number]
        assert point["verdict"] == verdict, f"{verdict} expected: {point}"


def main():
    assert NGINX, "nginx is needed"
    begun = time.monotonic()
    print("nginx, passing on:")
    points = judged(failover=False)
    # Bytes pass.
    expect(points, "pass", [1, 2, 3, 4, 5, 6, 7, 10, 13, 14, 19, 20, 22, 23, 27, 30, 36, 37, 46, 53, 54, 57])
    # Fields that Connection names, Accept-Encoding, broken streams, slow readers (it writes to disk), its own limit of
    # 1 MiB, and foreign origins: it knows nothing of these.
    expect(points, "fail", [8, 26, 28, 29, 35, 47, 55, 58])
    expect(points, "not_applicable", [12, 15, 16, 17, 18, 21, 38, 39, 40, 41, 42, 43, 44, 49, 59, 60])
    print("nginx, failing over:")
    points = judged(failover=True)
    expect(points, "pass", [1, 2, 23, 42, 43, 45])
    # It cannot fail over for 529, nor tell when all are free again, and it asks another upstream for somebody's files.
    expect(points, "fail", [38, 39, 41, 44, 49])
    expect(points, "not_applicable", [12, 18, 21, 40])
    print(f"the judge judges: {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
