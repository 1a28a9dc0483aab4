"""A PostgreSQL server of its own with the schema `onceward` in it, from the Debian package, in a temporary folder."""

import base64
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

# 32 bytes of 7.
SECRET = base64.b64encode(b"\x07" * 32).decode()


class Postgres:
    def __init__(self):
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
        if not versions:
            raise RuntimeError("PostgreSQL is missing; install it first: apt-get install postgresql-15")
        self.programs = versions[-1].parent
        self.folder = Path(tempfile.mkdtemp(prefix="onceward-postgres-"))
        # It refuses to run as root.
        self.user = "postgres" if os.getuid() == 0 else None
        if self.user:
            entry = pwd.getpwnam(self.user)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        self.data = self.folder / "data"
        self._run("initdb", "--no-sync", "--encoding=UTF8", "--locale=C", "--auth=trust", "--username=postgres", "--pgdata", self.data)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.start()
        migrate = [os.environ["ONCEWARD_BINARY"], "migrate", "--database", self.url, "--secret", SECRET]
        subprocess.run(migrate, check=True, stdout=subprocess.DEVNULL)

    def start(self):
        options = [f"-p{self.port}", "-clisten_addresses=127.0.0.1", "-cunix_socket_directories=", "-cfsync=off"]
        self.process = subprocess.Popen(
            [self.programs / "postgres", "-D", self.data, *options],
            cwd="/", user=self.user, group=self.user, extra_groups=[] if self.user else None,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )
        last = None
        for _ in range(300):
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            except psycopg.OperationalError as error:
                last = error
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"PostgreSQL does not start: {last}")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program, *arguments):
        subprocess.run(
            [self.programs / program, *arguments], check=True, cwd="/", stdout=subprocess.DEVNULL,
            user=self.user, group=self.user, extra_groups=[] if self.user else None,
        )
