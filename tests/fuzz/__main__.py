"""`python -m tests.fuzz NAME --seconds 60 --seed 0`."""

import argparse
import importlib
import sys

from tests.fuzz import findings, lasting, names, trials

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Damage inputs at random and check what must hold.")
parser.add_argument("name", choices=names())
parser.add_argument("--seconds", type=float, default=60)
parser.add_argument("--seed", type=int, default=0)
given = parser.parse_args()
counts = importlib.import_module(f"tests.fuzz.{given.name}").run(lasting(given.seconds, trials(given.seed)))
for outcome, times in counts.most_common():
    print(f"{times:8} {outcome}")
sys.exit(bool(findings(counts)))
