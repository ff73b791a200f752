"""The image, without a container engine: the tests do by hand what the Dockerfile says.

`Container` lays out the directories of the last stage in namespaces of its own and runs the command line of the image
there, as its user, with its environment and as process 1. Only the base image is not the real one: it is this machine's
system and Python.
"""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

import kv
from kv.config import Config
from tests.support.harness import ROOT, Server, await_true, free_port, make_certificate

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

LAY_OUT = """
set -eu
root=$1 user=$2 python=$3 venv=$4
shift 4
for name in /bin /lib /lib64 /sbin; do [ ! -L "$name" ] || cp -P "$name" "$root"; done
for name in /usr /etc /dev "$python"; do
    mkdir -p "$root$name"
    mount --rbind "$name" "$root$name"
done
mount --bind "$venv" "$root/app/.venv"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
exec chroot --userspec="$user:$user" "$root" env -i "$@"
"""


class Image:
    """The last stage of the Dockerfile."""

    def __init__(self, text):
        lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
        self.all = [tuple(line.split(maxsplit=1)) for line in lines if line]
        start = max(n for n, (word, _) in enumerate(self.all) if word == "FROM")
        self.build, self.last = self.all[:start], self.all[start:]

    def instruction(self, word):
        """The rest of the line of an instruction that is there once."""
        (rest,) = (rest for each, rest in self.last if each == word)
        return rest

    def variables(self, word):
        return dict(pair.split("=", 1) for pair in shlex.split(self.instruction(word)))

    def copied(self):
        """Files and directories of the project that go into it."""
        return [rest.split()[0] for word, rest in self.all if word == "COPY" and not rest.startswith("--from")]


IMAGE = Image((ROOT / "Dockerfile").read_text())
USER_ID = int(IMAGE.instruction("USER"))


class Container(Server):
    """The server as it runs in the image; `self.flags` are what follows the name of the image."""

    def __init__(self, root, *flags, **environment):
        super().__init__(root / "app" / "data", *flags)
        self._root = root
        self._variables = {**IMAGE.variables("ENV"), "PORT": str(self.port), **environment}
        for name in ("app/.venv", "app/data", "proc", "tmp"):
            (root / name).mkdir(parents=True)
        shutil.chown(self.directory, USER_ID, USER_ID)
        for name in IMAGE.copied():
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, root / "app" / name)

    def command(self):
        variables = [PATH, *(f"{name}={value}" for name, value in self._variables.items())]
        entrypoint = json.loads(IMAGE.instruction("ENTRYPOINT"))
        isolate = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", LAY_OUT, "sh"]
        places = [str(self._root), str(USER_ID), sys.base_prefix, str(ROOT / ".venv")]
        return [*isolate, *places, f"--chdir={IMAGE.instruction('WORKDIR')}", *variables, *entrypoint, *self.flags]

    def first(self):
        """Process 1 of the container."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def stop(self):
        """As a container engine does."""
        self.first().send_signal(getattr(signal, IMAGE.instruction("STOPSIGNAL")))
        return self.wait()


@pytest.fixture
def root(tmp_path):
    """Where a container may be laid out."""
    probe = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "true"]
    if not shutil.which("unshare") or subprocess.run(probe, check=False, capture_output=True, timeout=30).returncode:
        pytest.skip("laying out a container needs root, and namespaces")
    return tmp_path / "root"


def check_health(port):
    """The exit status of the image's health check."""
    _, _, command = IMAGE.instruction("HEALTHCHECK").partition("CMD ")
    done = subprocess.run(
        json.loads(command), cwd=ROOT, env={"PORT": str(port)}, check=False, capture_output=True, timeout=30
    )
    return done.returncode


# The container -------------------------------------------------------------------------------------------


def test_it_serves_as_another_user_and_keeps_what_was_acknowledged(root):
    with Container(root) as container:
        assert container.call("GET", "/health").body == b"ok"
        container.put("key", b"value")
        assert {process.uids().real for process in container.first().children(recursive=True)} == {USER_ID}
        assert {path.stat().st_uid for path in container.directory.iterdir()} == {USER_ID}
        container.crash()
        container.start()
        assert container.get("key") == b"value"
        assert container.stop() == 0
        assert "stopping on SIGTERM" in container.log
        assert container.left_behind() == []


def test_the_server_is_process_1_and_reaps_what_others_leave(root):
    with Container(root) as container:
        first = container.first()
        assert first.cmdline()[0].startswith("kv: supervisor")
        gunicorn = container.only("gunicorn")
        orphans = gunicorn.children()
        gunicorn.kill()
        psutil.wait_procs([gunicorn, *orphans], timeout=30)
        await_true(lambda: container.role("worker"), what="new workers")
        assert [p for p in first.children(recursive=True) if p.status() == psutil.STATUS_ZOMBIE] == []
        container.put("key", b"value")
        assert container.stop() == 0


def test_port_and_data_dir_are_honoured_whatever_is_in_them(root):
    other = root / "app" / "data" / 'with space "$PORT"'
    with Container(root, "--workers=1", DATA_DIR=f"/{other.relative_to(root)}") as container:
        container.put("key", b"value")
        assert list(other.glob("wal-*.log"))
        assert container.stop() == 0


def test_a_directory_that_is_not_the_users_is_refused(root):
    container = Container(root)
    shutil.chown(container.directory, 0, 0)
    with container.spawned():
        assert container.wait() == 12
        assert container.log.count("cannot be used") == 1


# Its health ----------------------------------------------------------------------------------------------


def test_the_health_check_agrees_with_health(tmp_path):
    with Server(tmp_path / "data", "--workers=1", "--request-timeout-s=0.2") as server:
        assert check_health(server.port) == 0
        server.only("logd").suspend()
        assert check_health(server.port) != 0
        server.only("logd").resume()
        await_true(lambda: check_health(server.port) == 0, what="health")
    assert check_health(free_port()) != 0


def test_the_health_check_does_so_over_tls_too(tmp_path):
    cert, key = make_certificate(tmp_path)
    server = Server(
        tmp_path / "data",
        f"--tls-cert-file={cert}",
        f"--tls-key-file={key}",
        "--workers=1",
        "--request-timeout-s=0.2",
    )
    with server.spawned():
        await_true(lambda: check_health(server.port) == 0, 30, "health")
        server.only("logd").suspend()
        assert check_health(server.port) != 0


# The Dockerfile ------------------------------------------------------------------------------------------


def test_the_linter_has_no_complaint():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--failure-threshold=style", "--no-color", ROOT / "Dockerfile"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_by_default_it_serves_every_address_on_8080_with_data_in_app_data():
    assert IMAGE.variables("ENV") == {"PORT": "8080", "DATA_DIR": "/app/data", "KV_HOST": "0.0.0.0"}
    assert (IMAGE.instruction("EXPOSE"), IMAGE.instruction("VOLUME")) == ("8080", "/app/data")


def test_arguments_after_the_name_of_the_image_are_flags():
    entrypoint = json.loads(IMAGE.instruction("ENTRYPOINT"))
    done = subprocess.run(
        [*entrypoint, "--version"],
        cwd=ROOT,
        env=IMAGE.variables("ENV"),
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == f"kv {kv.__version__}\n"


def test_the_builder_is_sent_only_what_is_copied():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(IMAGE.copied())


def test_the_compose_file_gives_the_image_its_port_a_volume_for_its_data_and_time_to_stop():
    (service,) = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"].values()
    assert [port.rpartition(":")[2] for port in service["ports"]] == [IMAGE.instruction("EXPOSE")]
    assert service["volumes"] == [f"kv-data:{IMAGE.instruction('VOLUME')}"]
    assert int(service["stop_grace_period"].removesuffix("s")) > 2 * Config().stop_timeout_s
    assert Config.from_environment(service["environment"]) != Config()  # what it sets are options


def test_both_stages_have_the_same_python():
    (build,) = (rest for word, rest in IMAGE.build if word == "FROM")
    assert build == f"{IMAGE.instruction('FROM')} AS build"
