"""Runs the tests of real clients: `cargo xtask test clients`, or one of them by a part of its name.

Needs ONCEWARD_BINARY, the packages of python/requirements.txt, and NODE_PATH with node/package.json's.
Everything is on free ports of loopback and in temporary folders.
"""

import resource
import sys
import unittest
from pathlib import Path


def main():
    # Nothing is written into the tree.
    sys.dont_write_bytecode = True
    # A thousand callers and the proxy's ends of them are more than a shell's usual limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    here = Path(__file__).parent / "python"
    sys.path.insert(0, str(here))
    loader = unittest.TestLoader()
    suite = loader.discover(str(here))
    if len(sys.argv) > 1:
        suite = unittest.TestSuite(test for test in flat(suite) if sys.argv[1] in test.id())
    # With what the tests print between them, in order.
    sys.stdout.reconfigure(line_buffering=True)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    passed = result.testsRun - failed - len(result.skipped) - len(result.expectedFailures)
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if failed == 0 and passed > 0 else 1


def flat(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


if __name__ == "__main__":
    sys.exit(main())
