"""The configuration file and job.yaml: what is accepted, and how mistakes are told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgeopt import wire
from edgeopt.config import reader, show
from edgeopt.config.schema import Config
from edgeopt.errors import ConfigError
from edgeopt.policy import Goal, InputHint, Policy, Preprocess, Search, Span, TargetRequest

BASE = Path("/srv/edgeopt")
NOTHING: dict[str, str] = {}


def loads(text: str | bytes) -> Config:
    return reader.loads(text, base=BASE, environ=NOTHING)


def mistakes_of(text: str | bytes) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        loads(text)
    return caught.value.mistakes


def test_empty_file_means_the_defaults() -> None:
    assert loads("") == loads("# nothing\n") == loads("watch:\ngoal: {}\n") == Config()


def test_every_section_of_the_contract_reads_into_its_field() -> None:
    config = loads(
        """
        inbox: drop
        published: /models
        watch: {backend: poll, settle: 500ms, rescan: 5m}
        target: {name: cpu, threads: 3, compute_capability: [8.6], features: [i8mm], batch: 4}
        goal: {objective: size, metric: cosine, max_drop: 0.05, min_speedup: 1.1}
        search: {strategy: random, budget: 1h30m, trials: 12, seed: 7}
        techniques: {quantize: [quantize_static], prune: {ratio: 0.5}, distill: off}
        intake: {torchscript: yes, keys: keys.pub}
        limits: {jobs: 2, sandbox: required, memory: 2GiB, threads: auto, model_bytes: 1GB, inbox_free: 0}
        neighbour: {window: "01:00-05:00", max_temperature: 80, max_load: 1.5, pause_file: stop}
        http: {listen: ":80", status_page: no}
        publish: {keep: 5, to: ["s3://bucket/models"], mode: 0640}
        log: {level: debug, format: json}
        """
    )
    assert (config.inbox, config.published) == ("/srv/edgeopt/drop", "/models")
    assert (config.watch.backend, config.watch.settle_s, config.watch.rescan_s) == ("poll", 0.5, 300.0)
    assert config.target == TargetRequest(name="cpu", threads=3, compute_capability=(8.6,), features=("i8mm",), batch=4)
    assert config.goal == Goal(objective="size", metric="cosine", max_drop=0.05, min_speedup=1.1)
    assert config.search == Search(strategy="random", budget_s=5400.0, trials=12, seed=7)
    assert (config.techniques.quantize, config.techniques.prune) == (("quantize_static",), {"ratio": 0.5})
    assert config.techniques.distill == "off"
    assert (config.intake.torchscript, config.intake.keys) == (True, "/srv/edgeopt/keys.pub")
    assert (config.limits.memory, config.limits.threads, config.limits.model_bytes) == (2 << 30, None, 10**9)
    assert (config.neighbour.window, config.neighbour.max_temperature_c) == ("01:00-05:00", 80.0)
    assert config.neighbour.pause_file == "/srv/edgeopt/stop"
    assert (config.http.listen, config.http.status_page) == (":80", False)
    assert (config.publish.to, config.publish.mode) == (("s3://bucket/models",), 0o640)
    assert (config.log.level, config.log.format) == ("debug", "json")


def test_share_of_memory_stays_a_share() -> None:
    assert loads("limits: {memory: 50%}").limits.memory == 0.5


def test_every_mistake_is_told_at_once_with_its_line() -> None:
    mistakes = mistakes_of(
        'goal:\n  max_dorp: 0.1\n  max_drop: 1.5\nlimits:\n  jobs: "3"\n  threads: true\nwach: {}\nsettle: 2s\n'
    )
    assert mistakes == (
        "line 2: goal.max_dorp is unknown; did you mean max_drop?",
        "line 3: goal.max_drop is 1.5, not a number from 0 to 1",
        "line 5: limits.jobs is '3', not a whole number from 1 to 64",
        "line 6: limits.threads is true, not a whole number from 1 to 1024, nor auto",
        "line 7: wach is unknown; did you mean watch?",
        "line 8: settle is unknown; it belongs under watch",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("intake: {require_signature: true}", "cannot check signatures yet"),
        ("goal: {max_drop: .nan}", "goal.max_drop is .nan, not a number from 0 to 1"),
        ("goal: {max_drop: true}", "goal.max_drop is true, not a number from 0 to 1"),
        ("goal: {max_drop: -0.1}", "not a number from 0 to 1"),
        ("goal: {max_drop: [0.1]}", "goal.max_drop is a list, not a number"),
        ("goal: {max_drop: }", "goal.max_drop is empty, not a number"),
        ("goal: {max_drop: 1, max_drop: 1}", "goal.max_drop stands here again, after line 1"),
        ("goal: [max_drop]", "goal is a list, not a mapping of keys"),
        ("goal: fast", "goal is fast, not a mapping of keys"),
        ("- goal", "the file is a list, not a mapping of keys"),
        ("search: {budget: 0s}", "search.budget is 0s: it is not within 1s to"),
        ("search: {budget: soon}", "search.budget is soon: it is not a time such as"),
        ("search: {trials: 0}", "nor auto"),
        ("search: {seed: 1.5}", "not a whole number"),
        ("limits: {memory: 0%}", "leaves nothing"),
        ("limits: {memory: 1}", "less than 64MiB"),
        ("limits: {memory: 0.75}", "neither a share such as 75% nor a size"),
        ("limits: {model_bytes: 4G}", "write GiB or GB"),
        ("publish: {mode: 0888}", "three octal digits"),
        ("publish: {to: [models]}", "publish.to[0] is not a URL"),
        ("http: {listen: localhost}", "not an address such as 127.0.0.1:9188"),
        ("http: {listen: 'host:70000'}", "not an address"),
        ("http: {tls_key: key.pem}", "http.tls_key is set and http.tls_certificate is not"),
        ("neighbour: {window: 25:00-26:00}", "not a time of day"),
        ("target: {compute_capability: 8.6}", "not a list"),
        ("techniques: {quantize: int8}", "not one of auto, off"),
        ("techniques: {quantize: [quantize_statc]}", "techniques.quantize[0] is quantize_statc, not one of"),
        ("techniques: {merge: {ratio: .inf}}", "not a finite number"),
        ("techniques: {merge: {ratio: 1, ratio: 2}}", "holds a key twice"),
        ("techniques: {prune: {ratio: .inf}}", "techniques.prune.ratio is .inf, not a number from 0 to below 1"),
        ("techniques: {prune: {ratio: 0.1, ratio: 0.2}}", "techniques.prune.ratio stands here again, after line 1"),
        ("? [a, b]\n: 1", "a key that is not a plain word"),
        ("inbox: ''", "inbox is '', not a path"),
        ("inbox: /a\nrejected: /a", "inbox and rejected are the same folder, /a"),
        ("inbox: /a\nrejected: /a/../a/b", "rejected (/a/b) lies within inbox (/a)"),
        ("state: /var/lib/edgeopt", "lies within state (/var/lib/edgeopt)"),
    ],
)
def test_mistake_says_what_stands_there_and_what_was_expected(text: str, told: str) -> None:
    assert any(told in mistake for mistake in mistakes_of(text)), mistakes_of(text)


def test_misspelled_setting_of_a_technique_is_told_on_its_line_with_the_nearest_name() -> None:
    mistakes = mistakes_of(
        "techniques:\n  quantize: [quantize_statc]\n  prune:\n    ratio: 1.5\n    critereon: l1\n    criterion: L2\n"
        "  distill:\n    stepps: 10\n    learning_rate: fast\n    loss: nonsense\n"
    )
    assert mistakes == (
        (
            "line 2: techniques.quantize[0] is quantize_statc, not one of quantize_static, quantize_dynamic, quantize_weights, "
            "cast_fp16; did you mean quantize_static?"
        ),
        "line 4: techniques.prune.ratio is 1.5, not a number from 0 to below 1",
        "line 5: techniques.prune.critereon is unknown; did you mean criterion?",
        (
            "line 6: techniques.prune.criterion is L2, not one of l1, l2, group_l2, batch_norm, taylor, entropy, apoz, variance, "
            "obs, random; did you mean l2?"
        ),
        "line 8: techniques.distill.stepps is unknown; did you mean steps?",
        "line 9: techniques.distill.learning_rate is fast, not a number of 0 or more, nor auto",
        "line 10: techniques.distill.loss is nonsense, not one of auto, kl, mse, cosine, features",
    )


@pytest.mark.parametrize(
    ("prune", "told"),
    [
        ("{ratio: 0.5, bits: 6}", "techniques.prune.bits is unknown; it is about single weights and needs a pattern"),
        ("{patern: '2:4'}", "techniques.prune.patern is unknown; did you mean pattern?"),
        ("{pattern: 2:4, criterion: l1}", "techniques.prune.criterion is unknown; it is about channels"),
        ("{pattern: 4:2}", "techniques.prune.pattern is 4:2, not unstructured, or n:m such as 2:4"),
        ("{pattern: 2:4, bits: 7}", "techniques.prune.bits is 7, not one of 0, 2, 3, 4, 5, 6, 8"),
        ("{pattern: 2:4, ratio: 0}", "techniques.prune.ratio is 0, not a number above 0 and below 1"),
        ("{removed: {conv1.weight: half}}", "techniques.prune.removed is a mapping, not counts by name"),
        (
            "[prune_chanels]",
            "techniques.prune[0] is prune_chanels, not one of prune_channels, prune_weights; did you mean",
        ),
    ],
)
def test_settings_of_both_ways_to_prune_are_told_apart(prune: str, told: str) -> None:
    mistakes = mistakes_of(f"techniques: {{prune: {prune}}}")
    assert [mistake.startswith(f"line 1: {told}") for mistake in mistakes] == [True], mistakes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &x 1", "line 1: an anchor"),
        ("goal: *x", "line 1: an alias"),
        ("\ngoal: !!python/object:os.system {}", "line 2: a tag"),
        ("%YAML 1.1\n---\ngoal: {}", "a directive"),
        ("goal: {}\n---\ngoal: {}", "line 2: a second document"),
        ("---\n---\n", "a second document"),
        ("goal: {<<: {max_drop: 1}}", "a merge key"),
        ("[" * 17, "nested deeper than 16"),
        ("a: [1, 2", "this is not YAML"),
        ("a:\tb\n\tc: d", "this is not YAML"),
        ("a: \x07", "characters that YAML does not allow"),
        ("x" * 70_000, "more than the 65536"),
        (b"a: \xff", "not UTF-8"),
        ("a: [" + "1," * 9000 + "1]", "more than 10000 tokens"),
    ],
)
def test_dangerous_yaml_is_refused_before_it_is_composed(text: str | bytes, told: str) -> None:
    assert told in mistakes_of(text)[0]
    assert len(mistakes_of(text)) == 1


def test_billion_laughs_and_hanging_merge_keys_end_at_once() -> None:
    laughs = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    merges = "a0: &a0 {k: 1}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 20)
    )
    before_s = time.process_time()
    for text in (laughs, merges, "[" * 60_000, "? " * 30_000, "- " * 30_000, "{a: " * 15_000):
        assert mistakes_of(text)
    assert time.process_time() - before_s < 5


def test_first_document_marker_and_byte_order_mark_are_harmless() -> None:
    assert loads("\ufeff---\ngoal: {max_drop: 0.5}\n...\n").goal.max_drop == 0.5


def test_secret_in_the_wrong_place_is_never_repeated() -> None:
    canary = "canary-7f3a"
    mistakes = mistakes_of(
        f"publish: {{to: ['{canary}', 'ftp {canary}'], signing_key: \"-----BEGIN\\n{canary}\"}}\n"
        f"http: {{password: {canary}, basic_auth: 'admin:{canary}'}}\n"
    )
    assert len(mistakes) == 4
    assert canary not in " ".join(mistakes)
    assert all(canary not in mistake for mistake in mistakes_of(f"a: '{canary}\n"))


def test_shown_configuration_hides_credentials_in_urls() -> None:
    shown = show.effective(loads("publish: {to: ['s3://user:canary@host/models?token=canary#canary']}"))
    assert "canary" not in shown
    assert "s3://***@host/models" in shown


def test_unreadable_file_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read: No such file"):
        reader.load(tmp_path / "none.yaml")


def test_relative_paths_lie_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "edgeopt.yaml"
    file.write_text("inbox: in\npublished: ./out\nrejected: ../no\nstate: state\n")
    config = reader.load(file, environ=NOTHING)
    assert config.inbox == str(tmp_path / "in")
    assert config.published == str(tmp_path / "out")
    assert config.rejected == str(tmp_path.parent / "no")


def test_home_of_nobody_is_a_plain_name() -> None:
    assert loads("inbox: ~no-such-user/in").inbox == "/srv/edgeopt/~no-such-user/in"


def test_folders_that_meet_through_a_symlink_are_one_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").symlink_to("in")
    file = tmp_path / "edgeopt.yaml"
    file.write_text("inbox: in\npublished: out\n")
    with pytest.raises(ConfigError) as caught:
        reader.load(file, environ=NOTHING)
    assert "the same folder" in caught.value.mistakes[0]


def test_folders_default_into_the_state_directory_of_systemd() -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/private/edgeopt:/var/lib/more"}
    assert reader.loads("", base=BASE, environ=environ).inbox == "/var/lib/private/edgeopt/inbox"
    assert reader.loads("inbox: /drop", base=BASE, environ=environ).inbox == "/drop"


def test_default_configuration_is_the_users_then_the_systems(tmp_path: Path) -> None:
    system = tmp_path / "etc.yaml"
    environ = {"HOME": str(tmp_path)}
    assert reader.find_default(environ=environ, system=system) is None
    system.touch()
    assert reader.find_default(environ=environ, system=system) == system
    own = tmp_path / ".config" / "edgeopt" / "edgeopt.yaml"
    own.parent.mkdir(parents=True)
    own.touch()
    assert reader.find_default(environ=environ, system=system) == own


# ---------------------------------------------------------------- job.yaml
POLICY = Policy(goal=Goal(max_drop=0.02, objective="size"), search=Search(seed=3))


def test_job_file_is_laid_over_the_policy_key_by_key() -> None:
    policy = reader.overlay_job(
        POLICY, "goal: {max_drop: 0.1}\nsearch: {budget: 20s}\nmerge: true\nteacher: big.onnx\n"
    )
    assert policy.goal == Goal(max_drop=0.1, objective="size")
    assert policy.search == Search(seed=3, budget_s=20.0)
    assert (policy.merge, policy.teacher) == (True, "big.onnx")


def test_empty_job_file_changes_nothing() -> None:
    assert reader.overlay_job(POLICY, "") == POLICY


def test_job_file_describes_inputs() -> None:
    policy = reader.overlay_job(
        POLICY,
        """
        inputs:
          image:0:
            shape: [1, 3, "H", W]
            range: [-1, 1]
            preprocess: {resize: 256, crop: 224, mean: [0.5], std: [0.25], layout: nhwc, color: bgr}
          "input mask": {range: [0, 1]}
        """,
    )
    assert policy.inputs == (
        (
            "image:0",
            InputHint(
                shape=(1, 3, "H", "W"),
                range=(-1.0, 1.0),
                preprocess=Preprocess(resize=256, crop=224, mean=(0.5,), std=(0.25,), layout="nhwc", color="bgr"),
            ),
        ),
        ("input mask", InputHint(range=(0.0, 1.0))),
    )


@pytest.mark.parametrize(
    ("written", "span"),
    [
        ("1..8..32", Span(least=1, typical=8, most=32)),
        ("320..1280", Span(least=320, most=1280)),
        ("4..4..4", Span(least=4, typical=4, most=4)),
        ("{min: 1, typical: 8, max: 32}", Span(least=1, typical=8, most=32)),
        ("{max: 32, min: 1}", Span(least=1, most=32)),
    ],
)
def test_open_dimension_may_be_given_the_lengths_that_it_takes(written: str, span: Span) -> None:
    policy = reader.overlay_job(POLICY, f"inputs: {{x: {{shape: [1, {written}, T]}}}}\n")
    assert policy.inputs == (("x", InputHint(shape=(1, span, "T"))),)
    assert wire.loads(Policy, wire.dumps(policy)) == policy


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("0..8", "[1] is 0..8, not lengths from 1 up in the order min, typical, max"),
        ("8..1", "[1] is 8..1, not lengths from 1 up"),
        ("1..64..32", "[1] is 1..64..32, not lengths from 1 up"),
        ("1..0..32", "[1] is 1..0..32, not lengths from 1 up"),
        ("1..2..3..4", "[1] is 1..2..3..4, not a length from 1 up, a range such as 1..8..32 or the name"),
        ("1...8", "[1] is 1...8, not a length"),
        ('"1..8"', "[1] is '1..8', not a length"),
        ("{min: 1, opt: 8, max: 32}", "[1] has 'opt', not min, typical and max; did you mean typical?"),
        ("{min: 1, typicl: 8, max: 32}", "[1] has 'typicl', not min, typical and max; did you mean typical?"),
        ("{typical: 8, max: 32}", "[1] lacks min"),
        ("{min: 1, max: 1, max: 2}", "[1] has max twice"),
        ("{min: 1, max: many}", "[1] has max, which is many, not a whole number from 1 to 1000000000"),
        ("{min: 9, typical: 8, max: 32}", "[1] is 9..8..32, not lengths from 1 up"),
    ],
)
def test_lengths_that_are_none_are_told_with_their_line(written: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        reader.overlay_job(POLICY, f"goal: {{}}\ninputs:\n  x:\n    shape: [1, {written}]\n")
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"line 4: inputs.x.shape{said}")


def test_job_file_may_not_set_what_belongs_to_the_device() -> None:
    with pytest.raises(ConfigError) as caught:
        reader.overlay_job(
            POLICY,
            "limits: {sandbox: off}\nhttp: {}\ninbox: /\nteacher: ../../etc/passwd\n"
            "inputs: {x: {range: [1, 0], shape: [0], preprocess: {std: [0]}, sape: 1}}\nmerge: maybe\n",
        )
    told = caught.value.mistakes
    assert len(told) == 9
    assert told[0].startswith("line 1: limits is unknown")
    assert told[3] == "line 4: teacher is ../../etc/passwd, not the name of a file beside the job file"
    assert any("inputs.x.sape is unknown; did you mean shape?" in line for line in told)
    assert any("inputs.x.range is [1, 0], whose first number is not the smaller one" in line for line in told)
    assert any("inputs.x.preprocess.std[0] is 0, not a number above 0" in line for line in told)
