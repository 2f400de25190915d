"""What curl does for the examples of the docs, on a machine that has none."""

import sys
from argparse import ArgumentParser
from urllib.request import Request, urlopen

parser = ArgumentParser()
parser.add_argument("url")
parser.add_argument("-X", dest="method")
parser.add_argument("-H", dest="header", required=True)
parser.add_argument("-d", dest="data")
parser.add_argument("-s", action="store_true")
given = parser.parse_args()
body = None if given.data is None else given.data.encode()
headers = dict([given.header.split(": ")])
with urlopen(Request(given.url, body, headers, method=given.method), timeout=60) as reply:
    sys.stdout.buffer.write(reply.read())
