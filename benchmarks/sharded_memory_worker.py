"""One process of `benchmarks/sharded_memory.py`: the train script, and what was seen of it."""

import os
import re
import runpy
import sys
from pathlib import Path

import common.models.device

if __name__ == "__main__":
    output, freed = (sys.argv.pop(1) for _ in range(2))
    if freed == "trimmed":
        common.models.device.keep_freed_memory = lambda: None
    sys.path.insert(0, str(Path.cwd()))
    runpy.run_path("train.py", run_name="__main__")
    most = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert most
    Path(f"{output}.{os.environ['RANK']}.json").write_text(str(1024 * int(most[1])))
