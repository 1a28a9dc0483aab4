"""`onceward proxy` as a process: started in a temporary folder, watched, killed, asked."""

import json
import os
import re
import signal
import subprocess
import threading
import urllib.request

BINARY = os.environ["ONCEWARD_BINARY"]
READY = re.compile(r"^onceward ready proxy=(http://127\.0\.0\.1:\d+) admin=(http://127\.0\.0\.1:\d+)$")
READY_SECONDS = 30


class Proxy:
    """Runs until `stop`; `restart` goes on with the same data."""

    def __init__(self, folder, upstream, config=""):
        self.folder = folder
        self.data = os.path.join(folder, "data")
        self.config = os.path.join(folder, "onceward.toml")
        with open(self.config, "w") as file:
            file.write(f'[[upstream]]\nname = "api"\nurl = "{upstream.url}"\n{config}')
        self.logs = open(os.path.join(folder, "proxy.log"), "ab")
        self.process = None
        self.start()

    def start(self):
        command = [BINARY, "proxy", "--config", self.config, "--data", self.data]
        command += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.logs, text=True
        )
        # A proxy that never gets ready must not hold the run up: killed, its output ends.
        watchdog = threading.Timer(READY_SECONDS, self.process.kill)
        watchdog.start()
        printed = []
        try:
            for line in self.process.stdout:
                printed.append(line)
                if ready := READY.match(line.rstrip("\n")):
                    self.url, self.admin = ready.groups()
                    return
        finally:
            watchdog.cancel()
        raise AssertionError(f"the proxy did not get ready: {printed}\n{self.log()}")

    def stop(self):
        """Asks it to end, and insists after a while."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()
        self.logs.close()

    def kill(self):
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def log(self):
        with open(self.logs.name) as file:
            return file.read()

    def port(self):
        return int(self.url.rsplit(":", 1)[1])

    def keys(self, *arguments, ok=True):
        """`onceward keys …` on this proxy's data: its standard output."""
        done = subprocess.run(
            [BINARY, "keys", *arguments, "--data", self.data],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )
        assert not ok or done.returncode == 0, f"keys {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def records(self, *filters):
        """What `keys list --json` has, as a list."""
        return json.loads(self.keys("list", "--json", *filters))["records"]

    def metric(self, name):
        """The sum over all labels, 0 where it is not there."""
        with urllib.request.urlopen(self.admin + "/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        samples = [line.rsplit(" ", 1) for line in lines if re.match(re.escape(name) + r"[{ ]", line)]
        return sum(float(value) for _, value in samples)

    def resident_mib(self):
        """Resident memory."""
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    def cpu_seconds(self):
        """CPU time so far, user's and system's."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
