"""guards/sandbox.py: what runs in a sandbox sees and reaches nothing of the host, as root and as a user."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guardlearn.errors import GuardError, UsageError
from guardlearn.guards import sandbox, seccomp
from guardlearn.guards.process import Limits, Outcome, ProcessResult
from users import closed_folders, run_as_user

STATE = sandbox.state()
pytestmark = pytest.mark.skipif(not STATE.works, reason=f"no sandbox works here: {STATE.reason}")
ROOT = sys.platform == "linux" and os.geteuid() == 0
CALM = Limits(wall_seconds=30.0, cpu_seconds=5)
TESTS = Path(__file__).parent


def python(code: str, limits: Limits = CALM, **options: object) -> ProcessResult:
    return sandbox.run_sandboxed(["python3", "-c", code], limits=limits, sandbox="bubblewrap", **options)  # type: ignore[arg-type]


def said(code: str, limits: Limits = CALM, **options: object) -> str:
    result = python(code, limits, **options)
    assert result.outcome is Outcome.EXITED, (result, result.stderr)
    return result.stdout.decode() or result.stderr.decode()


def test_a_command_gets_its_files_input_and_environment_and_gives_both_streams():
    code = (
        "import os, sys\n"
        "print(open('a/b').read(), sys.stdin.read(), os.environ['GIVEN'], os.getcwd())\n"
        "print('wrong', file=sys.stderr)\nsys.exit(3)"
    )
    result = python(code, files={"a/b": "text \u20ac", "c": b"\0"}, stdin=b"input", environment={"GIVEN": "x"})
    assert result.stdout.decode() == "text \u20ac input x /sandbox\n"
    assert (result.outcome, result.returncode, result.stderr) == (Outcome.EXITED, 3, b"wrong\n")
    assert 0 < result.seconds < 30


def test_any_program_runs_with_its_libraries():
    result = sandbox.run_sandboxed(["sh", "-c", "cat; ls"], files={"f": ""}, stdin=b"in\n", limits=WITH_CHILDREN)
    assert result.stdout == b"in\nf\n"


WITH_CHILDREN = dataclasses.replace(CALM, processes=8)

# What a program finds of the host, as JSON; run as root and as a user.
LOOK = """
import json, os, socket
def attempt(action):
    try:
        return str(action())
    except Exception as error:
        return type(error).__name__
print(json.dumps({
    "root": sorted(os.listdir("/")),
    "work": os.listdir("."),
    "tmp": os.listdir("/tmp"),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "environment": dict(os.environ),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
    "uids": os.getresuid(),
    "groups": os.getgroups(),
    "hostname": socket.gethostname(),
    "status": [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapE", "CapP", "NoNew"))],
    "shadow": attempt(lambda: open("/etc/shadow").read()),
    "passwd": attempt(lambda: open("/etc/passwd").read()),
    "write /": attempt(lambda: open("/x", "w")),
    "write /usr": attempt(lambda: open("/usr/x", "w")),
    "write /dev": attempt(lambda: open("/dev/x", "w")),
    "become root": attempt(lambda: os.setuid(0)),
    "libraries": attempt(lambda: len(open("/etc/ld.so.cache", "rb").read()) > 0),
    "tests": attempt(lambda: os.listdir(TESTS)),
    "stdin": attempt(lambda: os.write(0, b"x")),
}))
"""


def look() -> dict[str, object]:
    found: dict[str, object] = json.loads(said(LOOK.replace("TESTS", repr(str(TESTS)))))
    return found


def look_as_user() -> dict[str, object]:
    done = run_as_user(
        f"import sys, os; sys.path[:0] = {[str(TESTS), str(TESTS.parent / 'src')]!r}; os.chdir('/tmp')\n"
        "import json, test_sandbox; print(json.dumps(test_sandbox.look()))"
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("find", [look, look_as_user])
def test_nothing_of_the_host_is_seen(find, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    found = find()
    assert set(found["root"]) <= {
        *"bin dev etc lib lib32 lib64 libx32 nix proc sandbox sbin tmp usr".split(),
        *(Path(each).parts[1] for each in (sys.prefix, sys.base_prefix)),
    }
    # an interpreter that lies below /tmp is bound there, and nothing else
    bound = {Path(each).parts[2] for each in (sys.prefix, sys.base_prefix) if Path(each).is_relative_to("/tmp")}
    assert (found["work"], set(found["tmp"]) - bound, found["descriptors"]) == ([], set(), [0, 1, 2])
    assert (found["processes"], found["interfaces"], found["hostname"]) == (2, ["lo"], "sandbox")
    assert set(found["environment"]) <= {"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "PWD"}
    assert found["status"] == ["0" * 16, "0" * 16, "1"]
    assert found["shadow"] in {"FileNotFoundError", "PermissionError"}
    assert found["libraries"] == str(Path("/etc/ld.so.cache").exists()) or not Path("/etc/ld.so.cache").exists()
    assert found["passwd"] == "FileNotFoundError"
    assert {found["write /"], found["write /usr"], found["write /dev"]} <= {"OSError", "PermissionError"}
    assert found["become root"] in {"OSError", "PermissionError"}  # no such user, where root is not mapped
    assert found["tests"] == "FileNotFoundError"
    assert found["stdin"] in {"OSError", "PermissionError"}
    assert 0 not in found["uids"]
    assert len(set(found["uids"])) == 1


@pytest.mark.skipif(not ROOT, reason="only root has root to give up")
def test_started_as_root_each_sandbox_has_a_user_of_its_own():
    with ThreadPoolExecutor(4) as pool:
        code = "import os, time\nprint(os.getuid(), os.getgid(), os.getgroups(), flush=True)\ntime.sleep(1)"
        shown = list(pool.map(lambda _: said(code).split(maxsplit=2), range(4)))
    assert len({uid for uid, _, _ in shown}) == 4
    assert all(uid == gid and int(uid) >= 60_600 and groups == "[]\n" for uid, gid, groups in shown)


def test_readable_folders_are_bound_read_only(tmp_path):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "file").write_text("seen", encoding="utf-8")
    (tmp_path / "hidden").write_text("not seen", encoding="utf-8")
    (tmp_path / "given" / "file").chmod(0o666)
    tmp_path.chmod(0o755)
    code = (
        f"import os\nos.chdir({str(tmp_path)!r})\nprint(os.listdir('.'), open('given/file').read())\n"
        "try:\n    open('given/file', 'a')\nexcept OSError as error:\n    print(error.errno)"
    )
    assert said(code, readable=[tmp_path / "given"]) == "['given'] seen\n30\n"


def test_what_it_writes_stays_in_memory_of_bounded_size_and_goes_with_it(tmp_path):
    before = set(Path("/tmp").glob("guardlearn-*"))
    code = """
import os, sys
for folder in (".", "/tmp", "/dev/shm"):
    size = 0
    try:
        for n in range(10000):
            with open(f"{folder}/{n}", "wb") as file:
                size += file.write(b"x" * 65536)
    except OSError as error:
        print(error.errno, size <= 2 << 20, size > 1 << 20)
"""
    assert said(code, dataclasses.replace(CALM, folder_bytes=2 << 20)) == "28 True True\n" * 3
    assert set(Path("/tmp").glob("guardlearn-*")) <= before
    assert said("import os\nprint(os.listdir('.'))") == "[]\n"


BOMBS = {
    "sleep": ("import time\ntime.sleep(60)", Limits(wall_seconds=1.5), Outcome.TIMEOUT),
    "loop": ("while True: pass", Limits(wall_seconds=90), Outcome.TIMEOUT),
    "loops": (  # each child stays below the kernel's limit, and so does their parent
        "import os, time\nwhile 1:\n if os.fork() == 0:\n  while time.process_time() < 0.5: 1\n  os._exit(0)\n os.wait()",  # noqa: E501
        Limits(wall_seconds=90, processes=8),
        Outcome.TIMEOUT,
    ),
    "output": ("while True: print('x' * 5000)", Limits(wall_seconds=30, output_bytes=9000), Outcome.OUTPUT),
    "errors": ("import os\nwhile True: os.write(2, b'x' * 5000)", Limits(output_bytes=9000), Outcome.OUTPUT),
    "memory of many": (
        "import os, time\nfor _ in range(3): os.fork()\nheld = b'x' * (100 << 20)\ntime.sleep(60)",
        Limits(wall_seconds=30, cpu_seconds=9, processes=8),
        Outcome.MEMORY,
    ),
    "memory without a bound of addresses": (
        "held = b'x' * (1 << 30)\nwhile True: pass",
        Limits(wall_seconds=30, cpu_seconds=9, address_bytes=0),
        Outcome.MEMORY,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_each_limit_ends_the_whole_tree(bomb):
    code, limits, outcome = BOMBS[bomb]
    result = python(code, limits)
    assert result.outcome is outcome
    assert result.seconds < min(80, limits.wall_seconds + 5)
    assert len(result.stdout) <= limits.output_bytes
    assert len(result.stderr) <= limits.output_bytes


def test_processes_are_counted_for_each_sandbox_alone():
    code = """
import os, time
made = 0
try:
    for _ in range(20):
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
        made += 1
except OSError:
    pass
print(made)
"""
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda n: said(code, dataclasses.replace(CALM, processes=n)), [0, 1, 5, 5]))
    assert made == ["0\n", "1\n", "5\n", "5\n"]


def test_a_user_s_processes_are_counted_for_each_sandbox_alone():
    done = run_as_user(
        f"import sys, os; sys.path[:0] = {[str(TESTS), str(TESTS.parent / 'src')]!r}; os.chdir('/tmp')\n"
        "import subprocess, test_sandbox\n"
        "others = [subprocess.Popen(['sleep', '60']) for _ in range(12)]\n"
        "test_sandbox.test_processes_are_counted_for_each_sandbox_alone()\n"
        "for other in others: other.kill(); other.wait()\n"
        "print('counted')"
    )
    assert done.stdout == "counted\n", done.stderr


def test_no_process_outlives_the_sandbox():
    marker = f"guardlearn-outlives-{os.getpid()}"
    code = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["{marker}", "60"])
time.sleep(0.3)
"""
    assert python(code, WITH_CHILDREN).outcome is Outcome.EXITED
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _running(marker):
        time.sleep(0.02)
    assert _running(marker) == []


def test_the_sandbox_dies_with_the_process_that_started_it():
    marker = f"guardlearn-orphan-{os.getpid()}"
    code = (
        f"from guardlearn.guards import sandbox\nfrom guardlearn.guards.process import Limits\n"
        f"sandbox.run_sandboxed(['sh', '-c', 'exec sleep 60 # {marker}'], limits=Limits(wall_seconds=60))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not _running("sleep 60", below=parent.pid):
        time.sleep(0.02)
    started = _running("sleep 60", below=parent.pid)
    assert started
    parent.kill()
    parent.wait()
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}/cmdline").exists() for pid in started):
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in started)


def _running(words: str, below: int | None = None) -> list[int]:
    """Return processes whose command line has `words`, of the tree below a process if one is given."""
    from guardlearn.guards import watching

    everyone = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = []
    for pid in everyone if below is None else watching.tree(below):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ")
        except OSError:
            continue
        if line.startswith(words):
            found.append(pid)
    return found


def test_it_cannot_reach_what_listens_on_the_host():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as named:
        name = f"\0guardlearn-test-{os.getpid()}"
        named.bind(name)
        named.listen()
        code = f"""
import socket
for family, address in ((socket.AF_INET, ("127.0.0.1", {listener.getsockname()[1]})), (socket.AF_UNIX, {name!r})):
    try:
        socket.socket(family).connect(address)
    except OSError as error:
        print(type(error).__name__)
"""
        assert said(code) == "ConnectionRefusedError\n" * 2


# name: (x86-64, 64-bit ARM, arguments, errno)
CALLS = {
    "unshare": (272, 97, (0x10000000,), 1),
    "clone with a user namespace": (56, 220, (0x10000000 | 17,), 1),
    "mount": (165, 40, (), 1),
    "keyctl": (250, 219, (0, -3, 1), 1),
    "ptrace": (101, 117, (0,), 1),
    "memfd_create": (319, 279, (), 38),
    "io_uring_setup": (425, 425, (), 38),
    "clone3": (435, 435, (), 38),
    "socket(AF_VSOCK)": (41, 198, (40, 1, 0), 97),
}


@pytest.mark.skipif(not seccomp.program(), reason="there is no system call filter for this machine")
def test_system_calls_that_lead_around_the_sandbox_are_refused():
    place = 0 if os.uname().machine == "x86_64" else 1
    calls = {name: (call[place], call[2]) for name, call in CALLS.items()}
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, (number, arguments) in {calls!r}.items():
    result = libc.syscall(number, *arguments)
    print(name, result, ctypes.get_errno())
"""
    assert said(code) == "".join(f"{name} -1 {call[3]}\n" for name, call in CALLS.items())


@pytest.mark.parametrize(("machine", "architecture", "place"), [("x86_64", 0xC000003E, 0), ("aarch64", 0xC00000B7, 1)])
def test_the_filter_says_so_on_every_machine_it_knows(machine, architecture, place):
    program = seccomp.program(machine)
    for name, call in CALLS.items():
        assert _filtered(program, architecture, call[place], call[2]) == 0x50000 | call[3], name
    fork, socket_call = (56, 41) if place == 0 else (220, 198)
    for number, argument in (
        (fork, 17),
        (fork, 0x3D0F00),
        (socket_call, 1),
        (socket_call, 2),
        (socket_call, 10),
        (0, 0),
    ):
        assert _filtered(program, architecture, number, (argument,)) == 0x7FFF0000
    assert _filtered(program, 0x40000003, 4, ()) == 0x50000 | 38  # a 32-bit program
    assert seccomp.program("riscv64") == b""


def _filtered(program: bytes, architecture: int, number: int, arguments: tuple[int, ...]) -> int:
    """Return what the kernel would: a machine for the four instructions that the filter has."""
    import struct

    data = struct.pack("<IIQ6Q", number, architecture, 0, *(n & (2**64 - 1) for n in (*arguments, *[0] * 6)[:6]))
    lines = list(struct.iter_unpack("<HBBI", program))
    at = held = 0
    while True:
        code, true, false, value = lines[at]
        at += 1
        if code == 0x20:
            held = struct.unpack_from("<I", data, value)[0]
        elif code == 0x06:
            return value
        else:
            met = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code]
            at += true if met else false


@pytest.mark.parametrize(
    ("command", "options", "error", "words"),
    [
        ([], {}, UsageError, "empty"),
        (["no-such-program-anywhere"], {}, GuardError, "'no-such-program-anywhere' on PATH"),
        (["true"], {"files": {"../x": ""}}, UsageError, "'../x'"),
        (["true"], {"files": {"/etc/x": ""}}, UsageError, "'/etc/x'"),
        (["true"], {"files": {"": ""}}, UsageError, "''"),
        (["true"], {"files": {"a\0b": ""}}, UsageError, "work folder"),
        (["true"], {"readable": [Path("relative")]}, UsageError, "'relative'"),
        (["true"], {"readable": [Path("/")]}, UsageError, "'/'"),
        (["true"], {"readable": [Path("/tmp")]}, UsageError, "none of /, /tmp"),
        (["true"], {"readable": [Path("/no/such")]}, UsageError, "'/no/such'"),
        (["true"], {"sandbox": "docker"}, UsageError, "'docker'; it may be auto, bubblewrap, none"),
    ],
)
def test_bad_input_is_one_line(command, options, error, words):
    with pytest.raises(error) as caught:
        sandbox.run_sandboxed(command, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_program_is_the_checker_s_failure(tmp_path):
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    tmp_path.chmod(0o755)
    with pytest.raises(GuardError, match="before its program began"):
        sandbox.run_sandboxed([str(broken)], limits=CALM)


def test_many_threads_may_use_it():
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: said(f"print({n})"), range(24)))
    assert results == [f"{n}\n" for n in range(24)]


def test_python_source_runs_in_the_starting_process():
    result = sandbox.run_python(
        "import os, sys\nprint(sys.stdin.read(), os.getcwd(), sys.flags.isolated)", b"in", CALM, sandbox="bubblewrap"
    )
    assert result.stdout == b"in /sandbox 1\n"


@pytest.mark.skipif(
    ROOT and closed_folders() != set(), reason="another user cannot reach this interpreter outside a sandbox"
)
def test_without_a_sandbox_it_is_limited_all_the_same():
    code = "import os\nprint(os.getcwd(), sorted(os.environ), os.getuid())"
    result = sandbox.run_sandboxed(["python3", "-c", code], sandbox="none", limits=CALM)
    folder, rest = result.stdout.decode().split(" ", 1)
    assert folder == "/sandbox"
    assert set(re.findall("[A-Z_]+", rest)) <= {"HOME", "LANG", "LC_CTYPE", "PATH", "TMPDIR"}
    assert not ROOT or not rest.endswith(" 0\n")
