"""What runs inside the sandbox: `candidate` holds the generated program, `judge` its tests. Standard library only.

The two are processes in sandboxes of their own and talk through two pipes. The tests never enter the candidate's process
and its objects never leave it: results cross as plain data, anything else as a handle that equals nothing but itself. So a
program that patches the interpreter, ends early, prints what a passing one prints or returns objects that equal everything
only changes itself. `python -c "$(cat guest.py)" ROLE LIMITS READ_FD WRITE_FD [VERDICT_FD]`.

A message is a pickled tuple. The judge asks (OPERATION, ...); the candidate replies ("value", VALUE, changed arguments) or
("raised", class, nearest built-in class, message), or first asks ("call", ...) for a function of the tests, and is replied to
in the same way.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import io
import json
import os
import pickle
import resource
import struct
import sys
import types
from collections.abc import Iterator

MAX_MESSAGE = 1 << 28
BUILT_IN: tuple[type, ...] = (
    *(bool, int, float, complex, str, bytes, bytearray),
    *(tuple, list, dict, set, frozenset, range),
)
VALUES = (
    *(collections.deque, decimal.Decimal, datetime.date, datetime.time),
    *(datetime.datetime, datetime.timedelta, datetime.timezone),
)
MUTABLE = (list, dict, set, bytearray, collections.deque)


class Gone(BaseException):
    """The other process has ended or talks nonsense. No `except Exception` of the tests may take it for the program's."""


class Unsupported(TypeError):
    """Something that does not cross between the two processes."""


class CandidateError(Exception):
    """The candidate raised; `kind` is the exception's name."""

    def __init__(self, kind, message):
        self.kind, self.args = kind, (message,)

    def __str__(self):
        return self.args[0]


# What a message of the candidate's may call: types that nothing can patch, and functions for what has no such type.


def view(kind, values):
    """Of a dict: its `keys`, `values` or `items`."""
    if kind == "keys":
        return dict.fromkeys(values).keys()
    if kind == "values":
        return dict(enumerate(values)).values()
    if kind == "items":
        return dict(values).items()
    raise KeyError(kind)


def fraction(numerator, denominator):
    return fractions.Fraction(numerator, denominator)


VIEWS = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}
CALLED: tuple = (*BUILT_IN, *VALUES, view, fraction)


class Pickler(pickle.Pickler):
    """What both sides' picklers do."""

    def __init__(self, side, buffer):
        super().__init__(buffer)
        self.side = side

    def reducer_override(self, value):
        if type(value) in VIEWS:
            return view, (VIEWS[type(value)], list(value))
        if type(value) is fractions.Fraction:
            return fraction, (value.numerator, value.denominator)
        return NotImplemented


class Unpickler(pickle.Unpickler):
    def __init__(self, side, body):
        super().__init__(io.BytesIO(body))
        self.side = side


class Endpoint:
    """One of the two processes; its `pickler` and `unpickler` know what leaves it and what it takes in."""

    pickler: type[Pickler]
    unpickler: type[Unpickler]

    def __init__(self, reading, writing):
        self.reading, self.writing = reading, writing

    def pickled(self, message):
        """Raises Unsupported for what is too large."""
        buffer = io.BytesIO()
        self.pickler(self, buffer).dump(message)
        if buffer.tell() > MAX_MESSAGE:
            raise Unsupported(f"a value of {buffer.tell():,} bytes does not cross: {MAX_MESSAGE:,} are the most")
        return buffer.getvalue()

    def send(self, *message):
        body = self.pickled(message)
        try:
            self.writing.write(struct.pack(">I", len(body)) + body)
            self.writing.flush()
        except BrokenPipeError:
            raise Gone from None

    def receive(self):
        head = self.reading.read(4)
        length = struct.unpack(">I", head)[0] if len(head) == 4 else MAX_MESSAGE + 1
        body = self.reading.read(length) if length <= MAX_MESSAGE else b""
        if len(body) != length:
            raise Gone
        return self.unpickler(self, body).load()


def raised(error):
    """An exception as the message that says so."""
    try:
        message = str(error)[:500]
    except Exception:
        message = ""
    nearest = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    return "raised", type(error).__name__, nearest.__name__, message


def exception_class(name):
    """The built-in exception of that name that a test may expect; not those that end loops or processes in silence."""
    kind = getattr(builtins, name, None)
    loops = (StopIteration, StopAsyncIteration)
    fine = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, loops)
    return kind if fine and not name.endswith("Group") else Exception


# ---- the candidate's side


class CandidatePickler(Pickler):
    """Values of built-in types (and of their subclasses, as the built-in type); the rest as handles."""

    def persistent_id(self, value):
        if type(value) is Callback:
            return "callback", value.index
        crosses = isinstance(value, (types.NoneType, *BUILT_IN)) or type(value) in (*VALUES, *VIEWS, fractions.Fraction)
        if crosses or any(value is called for called in CALLED):
            return None
        return "iterator" if isinstance(value, Iterator) else "object", self.side.index(value)

    def reducer_override(self, value):
        for kind in BUILT_IN:
            if isinstance(value, kind) and type(value) is not kind:
                return kind, (kind(value),)
        return super().reducer_override(value)


class CandidateUnpickler(Unpickler):
    def persistent_load(self, reference):
        kind, index = reference
        return Callback(self.side, index) if kind == "callback" else self.side.objects[index]


class Callback:
    """A function of the tests that the candidate got as an argument: it can be called."""

    def __init__(self, side, index):
        self.side, self.index = side, index

    def __call__(self, *arguments, **keywords):
        self.side.send("call", self, arguments, keywords)
        return self.side.serve()


class Candidate(Endpoint):
    """The program's module, and those of its objects that the judge has handles of."""

    pickler, unpickler = CandidatePickler, CandidateUnpickler

    def __init__(self, reading, writing):
        super().__init__(reading, writing)
        self.objects, self.indices = [], {}
        self.module = types.ModuleType("solution")  # not __main__: what stands below that `if` is no part of the answer
        self.failure = None

    def index(self, value):
        """The same for the same object, which is kept."""
        if id(value) not in self.indices:
            self.indices[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.indices[id(value)]

    def execute(self, program):
        sys.argv, sys.modules["solution"] = ["solution.py"], self.module
        try:
            exec(compile(program, "solution.py", "exec"), self.module.__dict__)
        except BaseException as error:
            self.failure = raised(error)
            self.module.__dict__.clear()  # it may have filled the memory that telling needs

    def serve(self):
        """Answers the judge, until it replies to a call of a function of the tests."""
        while True:
            operation, *rest = self.receive()
            if operation == "value":
                return rest[0]
            if operation == "raised":
                raise exception_class(rest[1])(rest[2])
            try:
                self.send(*(self.failure or ("value", *getattr(self, operation)(*rest))))
            except Gone:
                raise
            except BaseException as error:
                self.send(*raised(error))

    # operations: each returns its value and the arguments as they are afterwards

    def name(self, name):
        if name not in self.module.__dict__:
            raise NameError(f"{name} is not defined")
        return self.module.__dict__[name], []

    def call(self, function, arguments, keywords):
        mutable = [value for value in (*arguments, *keywords.values()) if type(value) in MUTABLE]
        before = self.pickled(mutable)
        value = function(*arguments, **keywords)
        return value, mutable if self.pickled(mutable) != before else []

    def apply(self, module, name, *values):
        return getattr(sys.modules[module], name)(*values), []

    def next(self, iterator):
        """A tuple of the next value, () at the end."""
        for value in iterator:
            return (value,), []
        return (), []


# ---- the judge's side


def incomparable(_handle, _other):
    raise Unsupported("the candidate returned an object of its own class, and only plain data can be compared")


def forward(name, module="operator", swapped=False):
    def method(self, *values):
        return self._judge.ask("apply", module, name, *((*values, self) if swapped else (self, *values)))

    return method


class Handle:
    """Something of the candidate's that is no plain data. What is done to it happens in the candidate's process; but whether
    it equals something is not the candidate's to say."""

    __slots__ = ("_index", "_judge")
    _index: int
    _judge: Judge

    def __init__(self, judge, index):
        object.__setattr__(self, "_judge", judge)
        object.__setattr__(self, "_index", index)

    def __call__(self, *arguments, **keywords):
        mutable = [value for value in (*arguments, *keywords.values()) if type(value) in MUTABLE]
        return self._judge.ask("call", self, arguments, keywords, mutable=mutable)

    __len__, __bool__, __str__, __repr__, __iter__ = (
        forward(n, "builtins") for n in ("len", "bool", "str", "repr", "iter")
    )
    __abs__ = forward("abs")
    __getattr__, __setattr__ = forward("getattr", "builtins"), forward("setattr", "builtins")
    __getitem__, __setitem__, __delitem__ = forward("getitem"), forward("setitem"), forward("delitem")
    __instancecheck__ = forward("isinstance", "builtins", swapped=True)
    for _name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow"):
        locals()[f"__{_name}__"], locals()[f"__r{_name}__"] = forward(_name), forward(_name, swapped=True)
    __neg__ = forward("neg")

    def __hash__(self):
        return hash(self._index)

    def __eq__(self, other):
        if other is None or (type(other) is type(self) and other._index == self._index):
            return other is not None
        return incomparable(self, other)

    __lt__ = __gt__ = __le__ = __ge__ = incomparable


class RemoteIterator(Handle):
    """One of the candidate's, one value at a time."""

    __slots__ = ()

    def __iter__(self):
        return self

    def __next__(self):
        for value in self._judge.ask("next", self):
            return value
        raise StopIteration


class JudgePickler(Pickler):
    """Plain data; handles as what they stand for; functions of the tests as callbacks; generators as lists."""

    def persistent_id(self, value):
        if isinstance(value, Handle):
            return "object", value._index
        if type(value) is types.FunctionType and value.__module__ == "tests":
            self.side.functions.append(value)
            return "callback", len(self.side.functions) - 1
        return None

    def reducer_override(self, value):
        if type(value) is types.GeneratorType:
            return iter, (list(value),)
        return super().reducer_override(value)


class JudgeUnpickler(Unpickler):
    """Builds plain data and handles, and refuses every other name (see pickle's `Restricting Globals`)."""

    def find_class(self, module, name):
        for called in CALLED:
            if (module, name) == (called.__module__, called.__name__):
                return called
        raise pickle.UnpicklingError(f"{module}.{name} is no plain data")

    def persistent_load(self, reference):
        kind, index = reference
        if kind == "callback":
            return self.side.functions[index]
        return (RemoteIterator if kind == "iterator" else Handle)(self.side, index)


class Judge(Endpoint):
    """Asks the candidate for the tests."""

    pickler, unpickler = JudgePickler, JudgeUnpickler

    def __init__(self, reading, writing):
        super().__init__(reading, writing)
        self.functions = []
        self.lost = False
        """The candidate is gone: whatever the tests make of it, it has not passed."""

    def send(self, *message):
        try:
            super().send(*message)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise Unsupported(f"an argument does not cross to the candidate: {error}") from None

    def ask(self, *question, mutable=()):
        """The candidate's value; `mutable` arguments become what the candidate has made of them. Raises CandidateError."""
        try:
            if self.lost:
                raise Gone
            self.send(*question)
            while True:
                kind, *rest = self.receive()
                if kind == "call":
                    self.call(*rest)
                elif kind == "raised":
                    base = exception_class(rest[1])
                    raise type(base.__name__, (CandidateError, base), {})(rest[0], rest[2])
                else:
                    value, changed = rest
                    for old, new in zip(mutable, changed, strict=bool(changed)):
                        update(old, new)
                    return value
        except Gone:
            self.lost = True
            raise

    def receive(self):
        """The candidate's message: of one of three forms, and of plain data only."""
        try:
            kind, *rest = super().receive()
            if kind == "raised":
                return kind, *map(str.__str__, rest)
            if kind == "value" and type(rest[1]) is list:
                return kind, *rest
            function, arguments, keywords = rest
            if kind == "call" and type(function) is types.FunctionType:
                return kind, function, tuple(arguments), dict(keywords)
        except (Gone, MemoryError):
            raise
        except Exception:
            raise Gone from None
        raise Gone

    def call(self, function, arguments, keywords):
        try:
            reply = "value", function(*arguments, **keywords)
        except Exception as error:
            reply = raised(error)
        self.send(*reply)


def update(old, new):
    """In place."""
    if type(old) in (list, bytearray):
        old[:] = new
    else:
        old.clear()
        (old.extend if type(old) is collections.deque else old.update)(new)


def verdict(judge):
    """Runs the tests. Returns (passed, reason, detail); nothing that the candidate does makes it return True."""
    tests = json.load(sys.stdin)
    namespace = {"__name__": "tests"}
    outcome = True, "passed", ""
    try:
        exec(tests["setup"], namespace)
        for name in tests["names"]:
            namespace[name] = judge.ask("name", name)
        exec(tests["tests"], namespace)
    except CandidateError as error:
        reasons = {"SyntaxError": "syntax error", "IndentationError": "syntax error", "MemoryError": "memory"}
        reasons |= {"Unsupported": "unsupported"}
        detail = f"{error.kind}: {error}" if str(error) else error.kind
        outcome = False, reasons.get(error.kind, "error"), detail[:500]
    except Unsupported as error:
        outcome = False, "unsupported", str(error)[:500]
    except AssertionError as error:
        outcome = False, "wrong answer", str(error)[:500]
    except MemoryError:
        outcome = False, "memory", ""
    except BaseException as error:
        outcome = False, "error", f"{type(error).__name__}: {error}"[:500]
    return (False, "exited", "") if judge.lost else outcome


def main():
    """Takes the limits before anything else: no way leads back, without privileges."""
    role, limits, reading, writing = sys.argv[1:5]
    for name, values in json.loads(limits).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), values)
    pipes = os.fdopen(int(reading), "rb"), os.fdopen(int(writing), "wb")
    if role == "candidate":
        candidate = Candidate(*pipes)
        try:
            candidate.execute(sys.stdin.buffer.read())
            candidate.serve()
        except Gone:
            pass
    else:
        passed, reason, detail = verdict(Judge(*pipes))
        with os.fdopen(int(sys.argv[5]), "w") as file:
            json.dump({"passed": passed, "reason": reason, "detail": detail}, file)
    os._exit(0)  # no clean-up of the program's


if __name__ == "__main__":
    main()
