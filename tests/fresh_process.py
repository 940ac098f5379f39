"""Python scripts in processes of their own, which start with sknan imported.

To import the package takes most of the time of a short script. A server imports it once
and then forks the processes.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import warnings

METHODS = multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else None)
if "forkserver" in METHODS:
    CONTEXT.set_forkserver_preload(["sknan"])


def start_script(script, output, *args, action="default"):
    """Start a script in a new process.

    Parameters
    ----------
    script : path
        File of the script.
    output : path
        File that stdout and stderr are written to.
    *args
        Arguments of the script, as in ``sys.argv``.
    action : str
        Action of the filter for warnings.
    """
    args = [str(arg) for arg in (script, *args)]
    process = CONTEXT.Process(target=_run, args=(args, str(output), action))
    process.start()
    return process


def run_script(script, output, *args, action="default"):
    """Run a script in a new process; return its exit code and its output."""
    process = start_script(script, output, *args, action=action)
    process.join(timeout=600)
    return process.exitcode, output.read_text()


def _run(args, output, action):
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    warnings.simplefilter(action)
    sys.argv = args
    runpy.run_path(args[0], run_name="__main__")
