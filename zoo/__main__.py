"""`python -m zoo`: list, describe and fetch published weights."""

import runtime

runtime.end_quietly()

import sys

import program
from zoo import main

program.run(lambda: sys.exit(main()), error_code=1)
