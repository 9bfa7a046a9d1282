"""The config refuses what it cannot mean, in one line that says what to do."""

import json

import pytest
import yaml
from pydantic import ValidationError

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.options import TokensConfig


def test_round_trip_through_every_form(tmp_path):
    config = FastCacheConfig(lead_blocks=0, tokens={"keep_ratio": 0.25, "static_kv": "drop"}, schedule={4: "1p10"})
    file = tmp_path / "cache.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert FastCacheConfig.from_dict(config.to_dict()) == config
    assert FastCacheConfig.from_json(json.dumps(config.to_dict())) == config
    assert FastCacheConfig.from_file(file) == config
    assert FastCacheConfig.from_text(str(file)) == FastCacheConfig.from_text(json.dumps(config.to_dict())) == config
    assert FastCacheConfig.from_text(None) == FastCacheConfig()


def test_it_is_frozen():
    with pytest.raises(ValidationError):
        FastCacheConfig().budget = 1.0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"bugdet": 0.1}, ["unknown option 'bugdet'", "did you mean 'budget'?"]),
        ({"xyzzy": 1}, ["unknown option 'xyzzy'", "known options: budget"]),
        ({"check": -1}, ["'check'", "greater than or equal to 0", "-1"]),
        ({"check": "much"}, ["'check'", "number", "much"]),
        ({"check": float("nan")}, ["'check'"]),
        ({"granularity": "token"}, ["'granularity'", "'step', 'group' or 'block'", "token"]),
        ({"budget": 0}, ["'budget'", "greater than 0"]),
        ({"budget": 0.4, "psnr": 36}, ["budget and psnr are both given", "one goal"]),
        ({"budget": 0.4, "test": "paper"}, ["budget belongs to test 'plan', not to 'paper'"]),
        ({"check": 0.1, "schedule": {4: "1010"}}, ["check belongs to test 'plan', not to 'none'"]),
        ({"granularity": "output", "test": "paper"}, ["granularity 'output' does not go with test 'paper'"]),
        ({"granularity": "block"}, ["granularity 'block' does not go with test 'plan'", "give a schedule", "'paper'"]),
        ({"schedule": "110101"}, ["{6: '110101'}", "FastCacheConfig.scheduled('110101')"]),
        ({"num_warmup_steps": 2}, ["did you mean 'warmup_steps'?"]),
        ({"warmup_steps": 0}, ["'warmup_steps'", "greater than or equal to 1"]),
        ({"tokens": {"keep_ration": 0.5}}, ["unknown option 'keep_ration'", "did you mean 'keep_ratio'?"]),
        ({"tokens": {"keep_ratio": 0}}, ["'tokens.keep_ratio'", "greater than 0"]),
        ({"tokens": {}}, ["exactly one of keep_ratio, threshold, merge_ratio"]),
        ({"tokens": {"keep_ratio": 0.5, "threshold": 0.1}}, ["exactly one of keep_ratio, threshold, merge_ratio"]),
        ({"tokens": {"merge_ratio": 0.5, "balance": "reshard"}}, ["balance=reshard has no meaning with merge_ratio"]),
        (
            {"tokens": {"keep_ratio": 0.5}, "test": "paper", "granularity": "block"},
            ["tokens with granularity=block", "step"],
        ),
        ({"tokens": {"keep_ratio": 0.5, "when": "scheduled"}, "test": "paper"}, ["no step to be used at", "mark"]),
        ({"schedule": {4: "1p10"}}, ["partial steps (p)", "give tokens"]),
        ({"pp_decision": "all"}, ["'pp_decision'", "'leader' or 'stage'"]),
    ],
)
def test_bad_options_are_told_in_one_line(options, words):
    with pytest.raises(ValueError) as error:
        FastCacheConfig.from_dict(options)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("text", ["[1, 2]", "- 1\n- 2\n"])
def test_a_file_must_hold_a_mapping(tmp_path, text):
    file = tmp_path / "cache.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match="mapping of options"):
        FastCacheConfig.from_file(file)


def test_files_that_cannot_be_read_are_named(tmp_path):
    file = tmp_path / "cache.yaml"
    with pytest.raises(ValueError, match="no such config file: .*cache.yaml"):
        FastCacheConfig.from_text(str(file))
    file.write_text("{unclosed")
    with pytest.raises(ValueError, match="cache.yaml is not valid YAML"):
        FastCacheConfig.from_file(file)
    with pytest.raises(ValueError, match="not valid JSON"):
        FastCacheConfig.from_text("{unclosed")
    file.write_text("bugdet: 1")
    with pytest.raises(ValueError, match="cache.yaml: unknown option"):
        FastCacheConfig.from_file(file)


def test_costs_say_where_a_partial_step_pays():
    options = TokensConfig(keep_ratio=0.5, costs={0.25: 0.4, 0.5: 0.8, 0.75: 1.2})
    assert [options.pays(fraction) for fraction in (0.1, 0.5, 0.62, 0.63, 0.9)] == [True, True, True, False, False]
    assert TokensConfig(keep_ratio=0.5).pays(0.9) and not TokensConfig(keep_ratio=0.5).pays(0.91)
    assert not TokensConfig(keep_ratio=0.5, min_static_ratio=0).pays(1)


@pytest.mark.parametrize("costs", [{}, {0: 0.5}, {1.5: 0.5}, {0.5: 0}])
def test_costs_are_shares_and_times(costs):
    with pytest.raises(ValidationError, match="costs map fractions of tokens, 0 to 1, to relative times"):
        TokensConfig(keep_ratio=0.5, costs=costs)


@pytest.mark.parametrize("options", [{"bugdet": 1}, {"budget": "high"}, {"warmup_steps": 1.5}, {"tokens": {}}])
def test_keywords_are_checked_as_files_are(options):
    with pytest.raises(UsageError):
        FastCacheConfig(**options)


@pytest.mark.parametrize("masks", [[1, 0, 1], 1010, None])
def test_masks_are_texts(masks):
    with pytest.raises(UsageError, match="masks are a text such as '1010'"):
        FastCacheConfig.scheduled(masks)


def test_a_schedule_alone_decides():
    config = FastCacheConfig.scheduled("1010", stand_in="reuse")
    assert config.schedule == {4: "1010"} and config.test == "none" and config.stand_in == "reuse"
    assert (config.warmup_steps, config.cooldown_steps) == (1, 0)
    assert FastCacheConfig.scheduled({4: "1010", 2: "10"}).schedule == {4: "1010", 2: "10"}


@pytest.mark.parametrize("options", [{"test": "online"}, {"threshold": 0.1}, {"window": 4}])
def test_what_the_online_test_took_names_what_replaced_it(options):
    with pytest.raises(UsageError, match="was replaced by test 'plan'; set budget, speedup or psnr, and check"):
        FastCacheConfig(**options)


@pytest.mark.parametrize(
    "options, test, granularity",
    [
        ({}, "plan", "output"),
        ({"psnr": 36}, "plan", "output"),
        ({"schedule": {4: "1010"}}, "none", "step"),
        ({"schedule": {4: "1010"}, "granularity": "output"}, "none", "output"),
        ({"test": "paper"}, "paper", "step"),
    ],
)
def test_what_is_left_out_follows_from_what_is_given(options, test, granularity):
    config = FastCacheConfig(**options)
    assert (config.test, config.granularity) == (test, granularity)
    assert FastCacheConfig.from_dict(config.to_dict()) == config
