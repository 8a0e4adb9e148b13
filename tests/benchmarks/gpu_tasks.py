"""Tasks for the tests of the runner of benchmarks/gpu.py, each of which ends in another way."""

import os
import time


def succeed(context):
    yield {"first": 1.0, "device": context.device}
    yield {"second": float("nan")}


def fail(context):
    yield {"first": 1.0}
    raise ArithmeticError("wrong on purpose")


def fail_fatally(context):
    yield {"process": os.getpid()}
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def skip(context):
    from gpu_runner import Skip  # on the path of the worker

    raise Skip("this needs something else")
    yield {}


def crash(context):
    yield {"first": 1.0}
    os._exit(3)


def hang(context):
    yield {"first": 1.0}
    time.sleep(60)


def repeat(context):
    for count in range(1000):
        yield {"count": count}
        time.sleep(0.05)


def report_process(context):
    yield {"process": os.getpid()}
