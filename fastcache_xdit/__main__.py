"""`python -m fastcache_xdit`."""

from fastcache_xdit.cli.main import entry

if __name__ == "__main__":
    entry()
