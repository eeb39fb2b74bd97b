"""What runs inside the sandbox: `candidate` holds the generated program, `judge` its tests. Standard library only.

The two are processes in sandboxes of their own and talk through two pipes. The tests never enter the candidate's process
and its objects never leave it: results cross as plain data, anything else as a handle that compares with nothing. So a
program that patches the interpreter, ends early, prints what a passing one prints or returns objects that equal everything
only changes itself. `python -c "$(cat inside.py)" ROLE LIMITS READ_FD WRITE_FD [VERDICT_FD]`.
"""

import io
import json
import os
import pickle
import resource
import struct
import sys
import types
from collections.abc import Iterator

MAX_MESSAGE = 1 << 24
PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset, range)
CALLED = (*PLAIN, iter)  # the only callables that a message may name


class Gone(Exception):
    """The other process has ended or talks nonsense."""


class CandidateError(Exception):
    """The candidate raised; `kind` is the exception's name."""

    def __init__(self, kind, message):
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind


def send(pipe, body):
    try:
        pipe.write(struct.pack(">I", len(body)) + body)
        pipe.flush()
    except (BrokenPipeError, struct.error):
        raise Gone from None


def receive(pipe):
    head = pipe.read(4)
    length = struct.unpack(">I", head)[0] if len(head) == 4 else MAX_MESSAGE + 1
    body = pipe.read(length) if length <= MAX_MESSAGE else b""
    if len(body) != length:
        raise Gone
    return body


# ---- the candidate's side


handles = []  # of the candidate's, by index


class CandidatePickler(pickle.Pickler):
    """Values of built-in types (and of their subclasses, as the built-in type); iterators as lists; the rest as handles."""

    def persistent_id(self, value):
        if isinstance(value, (*PLAIN, Iterator)) or any(value is called for called in CALLED):
            return None
        handles.append(value)
        return len(handles) - 1

    def reducer_override(self, value):
        if isinstance(value, Iterator):
            return iter, (list(value),)
        for kind in PLAIN:
            if isinstance(value, kind) and type(value) is not kind:
                return kind, (kind(value),)
        return NotImplemented


class CandidateUnpickler(pickle.Unpickler):
    def persistent_load(self, index):
        return handles[index]


def candidate(reading, writing):
    """Executes the program, then answers until the judge is done."""
    program, failure = sys.stdin.buffer.read(), None
    module = types.ModuleType("solution")  # not __main__: what stands below that `if` is no part of the answer
    sys.argv, sys.modules["solution"] = ["solution.py"], module
    try:
        exec(compile(program, "solution.py", "exec"), module.__dict__)
    except BaseException as error:
        failure = told(error)
        module.__dict__.clear()  # it may have filled the memory that telling needs
    while True:
        try:
            operation, *arguments = CandidateUnpickler(io.BytesIO(receive(reading))).load()
            reply = failure or pickled((True, OPERATIONS[operation](module, *arguments)))
        except Gone:
            return
        except BaseException as error:
            reply = told(error)
        send(writing, reply)


def pickled(reply):
    buffer = io.BytesIO()
    CandidatePickler(buffer).dump(reply)
    return buffer.getvalue()


def told(error):
    """An exception as the reply that says so."""
    return pickled((False, (type(error).__name__, str(error)[:500])))


def defined(module, name):
    if name not in module.__dict__:
        raise NameError(f"{name} is not defined")
    return module.__dict__[name]


OPERATIONS = {
    "name": defined,
    "call": lambda _, function, arguments, keywords: function(*arguments, **keywords),
    "get": lambda _, owner, name: getattr(owner, name),
    "set": lambda _, owner, name, value: setattr(owner, name, value),
}


# ---- the judge's side


class Handle:
    """Something of the candidate's that is no plain data: it can be called, and its attributes read and set."""

    __slots__ = ("_ask", "_index")
    __hash__ = None

    def __init__(self, ask, index):
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_index", index)

    def __call__(self, *arguments, **keywords):
        return self._ask("call", self, arguments, keywords)

    def __getattr__(self, name):
        return self._ask("get", self, name)

    def __setattr__(self, name, value):
        self._ask("set", self, name, value)

    def _refuse(self, *_):
        raise TypeError("the candidate returned something that is no plain data")

    __eq__ = __ne__ = __bool__ = _refuse


class JudgePickler(pickle.Pickler):
    def persistent_id(self, value):
        return value._index if type(value) is Handle else None


class JudgeUnpickler(pickle.Unpickler):
    """Builds built-in types and handles, and refuses every other name (see pickle's `Restricting Globals`)."""

    def __init__(self, body, ask):
        super().__init__(io.BytesIO(body))
        self.ask = ask

    def find_class(self, module, name):
        for called in CALLED:
            if (module, name) == ("builtins", called.__name__):
                return called
        raise pickle.UnpicklingError(f"{module}.{name} is no plain data")

    def persistent_load(self, index):
        return Handle(self.ask, index)


def judge(reading, writing):
    """Runs the tests. Returns (passed, reason, detail); nothing that the candidate does makes it return True."""
    tests = json.load(sys.stdin)

    def ask(*question):
        buffer = io.BytesIO()
        JudgePickler(buffer).dump(question)
        send(writing, buffer.getvalue())
        try:
            well, value = JudgeUnpickler(receive(reading), ask).load()
            kind, message = ("", "") if well else map(str, value)
        except (Gone, MemoryError):
            raise
        except Exception:
            raise Gone from None
        if well is True:
            return value
        raise CandidateError(kind, message)

    namespace = {"__name__": "tests"}
    try:
        exec(tests["setup"], namespace)
        for name in tests["names"]:
            namespace[name] = ask("name", name)
        exec(tests["tests"], namespace)
    except Gone:
        return False, "exited", ""
    except CandidateError as error:
        known = {"SyntaxError": "syntax error", "IndentationError": "syntax error", "MemoryError": "memory"}
        return False, known.get(error.kind, "error"), str(error)[:500]
    except AssertionError as error:
        return False, "wrong answer", str(error)[:500]
    except BaseException as error:
        return False, "error", f"{type(error).__name__}: {error}"[:500]
    return True, "passed", ""


def main():
    """Takes the limits before anything else: no way leads back, without privileges."""
    role, limits, reading, writing = sys.argv[1:5]
    for name, values in json.loads(limits).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), values)
    pipes = os.fdopen(int(reading), "rb"), os.fdopen(int(writing), "wb")
    if role == "candidate":
        candidate(*pipes)
    else:
        passed, reason, detail = judge(*pipes)
        with os.fdopen(int(sys.argv[5]), "w") as verdict:
            json.dump({"passed": passed, "reason": reason, "detail": detail}, verdict)
    os._exit(0)  # no clean-up of the program's


if __name__ == "__main__":
    main()
