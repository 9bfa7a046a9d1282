"""Config files and texts that are no configs: one line, soon, whatever they hold."""

from __future__ import annotations

import pytest

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.reading import LARGEST

BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content, told",
    [
        (BOMB, "aliases"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("psnr: " + "x" * 349_000, "option 'psnr'"),
        ("x" * (LARGEST + 1), f"larger than {LARGEST} bytes"),
        ("1: 2\n", "an option has a name, not 1"),
        ("psnr: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ('"\\e[31mred": 1', r"\x1b[31mred"),
    ],
)
def test_a_file_that_is_no_config_is_told_in_one_short_line(tmp_path, content, told):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UsageError) as raised:
        FastCacheConfig.from_text(str(tmp_path / "c.yaml"))
    line = str(raised.value)
    assert told in line and "c.yaml" in line and line.isprintable() and len(line) < 2100


@pytest.mark.parametrize(
    "text, told",
    [
        ("psnr: " + "y" * 300, "File name too long"),
        ('{"budget": ' + "1" * 5000 + "}", "not valid JSON"),
        ('{"a": ' + "[" * 100_000, "not valid JSON"),
    ],
)
def test_a_text_that_is_no_config_is_told_in_one_short_line(text, told):
    with pytest.raises(UsageError) as raised:
        FastCacheConfig.from_text(text)
    assert told in str(raised.value) and len(str(raised.value)) < 1000
