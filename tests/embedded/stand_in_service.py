"""A service for the supervisor to watch: serves /health, or works with a helper process of its own, or will not stop.

Needs nothing but the standard library, so that it starts at once.
"""

import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    role, *arguments = sys.argv[1:]
    if role == "api":
        HTTPServer(("127.0.0.1", int(arguments[0])), Health).serve_forever()
    if role == "worker":  # its helper, like a training, lives in a session of its own
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if role == "stubborn":
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    print(f"{role} runs", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
