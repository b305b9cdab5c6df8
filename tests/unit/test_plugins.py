"""Methods, sources and gates of another package, as pip leaves one behind: found and held to the rules, or refused."""

import json
import sys
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from genrec.bench.cells import code_hash
from genrec.bench.erasures import Erasure
from genrec.bench.matrix import cell_key
from genrec.calibration import params_hash
from genrec.candidates import providers
from genrec.config import DataParams, Params, Settings
from genrec.data.sequences import TEST
from genrec.data.sources import fetch
from genrec.doctor import look_at
from genrec.errors import ConfigError, DataError, PluginError, UnlearningError
from genrec.evaluation import gates
from genrec.evaluation.gates import AT_LEAST, IN_WORDS, SHIPPED, decide, from_measure
from genrec.evaluation.judge import Erased, Forgotten, judge, measure
from genrec.evaluation.rules import GateRule, NamedRule, rules
from genrec.evaluation.statistics import Bootstrap, Measure
from genrec.models.adapter import fold
from genrec.planning import check_plugins, installed_plugins
from genrec.saga import third_party
from genrec.unlearning import method, plugins
from genrec.workspace import params_yaml
from tests.plugin import install, install_example

NONE = np.empty(0, np.int64)
BROKEN = """
from genrec.data.sources import Source
from genrec.evaluation.rules import GateRule
from genrec.unlearning.problem import Method

def fails(given):
    raise ValueError("u0042 is somebody")

class Fails(GateRule):
    def __call__(self, judged):
        return fails(judged)

FAILS = Method("fails", fails)
EXACT = Method("exact", fails, exact=True)
SOURCE = Source((), "", "", {"a.csv": None}, fails)
EMPTY = Source((), "", "", {"a.csv": None}, lambda raw: None)
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Puts folders of packages on the path of this process; their modules leave with the test."""
    before = set(sys.modules)
    yield lambda folder: monkeypatch.syspath_prepend(folder)
    for name in set(sys.modules) - before:
        if name in ("acme_genrec", "broken", "missing"):
            del sys.modules[name]


@pytest.fixture
def acme(site, tmp_path):
    folder = install_example(tmp_path / "acme")
    site(folder)
    return folder


@pytest.fixture
def offers(site, tmp_path):
    """kind, names and what they stand for in the module `broken` -> a package that offers them."""

    def make(kind, package="broken", module=BROKEN, **named):
        entries = {f"genrec.{kind}s": {name.replace("__", "-"): f"broken:{found}" for name, found in named.items()}}
        project = {"name": package, "version": "0.3", "entry-points": entries}
        site(install(tmp_path / package, project, {"broken.py": module}))

    return make


def asking(params, **plugins):
    return params.model_copy(update={"plugins": Params.model_validate({"plugins": plugins}).plugins})


def plugins_line(tmp_path, params):
    (tmp_path / "params.yaml").write_text(params_yaml(params))
    (found,) = look_at("plugins", Settings(home=tmp_path).workspace, datetime.now(UTC))
    return found


def test_nothing_is_installed_in_this_environment(params, tmp_path):
    assert installed_plugins() == []
    check_plugins(params)
    assert plugins_line(tmp_path, params).says == "no other package adds a method, source or gate"


def test_what_a_package_offers_is_listed_without_importing_it(acme, params, tmp_path):
    told = [str(plugin) for plugin in installed_plugins()]
    assert told == [
        "method 'acme_shrink' of acme-genrec 1.2.0", "source 'acme-orders' of acme-genrec 1.2.0",
        "gate 'acme-nll' of acme-genrec 1.2.0",
    ]  # fmt: skip
    assert plugins_line(tmp_path, params).says == ", ".join(told)
    assert "acme_genrec" not in sys.modules
    broken = plugins_line(tmp_path, asking(params, gates={"acme-nll": {"most": -1}}))
    assert (broken.state, broken.remedy) == ("broken", "Correct params.yaml, or the package")
    assert "plugins.gates.acme-nll.most = -1" in broken.says


def test_a_method_runs_with_its_own_parameters(acme, user_problem, bundle):
    asked = asking(user_problem.params, methods={"acme_shrink": {"factor": 0.25}})
    outcome = method("acme_shrink").run(SimpleNamespace(bundle=bundle, params=asked))
    before, after = fold(bundle.adapter, bundle.overlays).state, outcome.bundle.adapter.state
    for name, weight in before.items():
        assert np.allclose(after[name], weight * (0.25 if ".lora_B." in name else 1.0))
    assert outcome.diagnostics == {"factor": 0.25}
    with pytest.raises(ConfigError, match=r"Unknown method 'acme_shring'\. Known methods near it: acme_shrink\."):
        method("acme_shring")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"methods": {"acme_shrink": {"factr": 0.3}}}, r"plugins\.methods\.acme_shrink\.factr = 0\.3: .*keys: factor"),
        ({"methods": {"acme_shrink": {"factor": 3}}}, r"plugins\.methods\.acme_shrink\.factor = 3: .*less than 1"),
        ({"methods": {"npo": {"beta": 1}}}, r"plugins\.methods\.npo = .* no parameters of that kind"),
        ({"methods": {"acme_shirnk": {}}}, r"Unknown method 'acme_shirnk'.*near it: acme_shrink"),
        ({"gates": {"acme-nll": {"mots": 2}}}, r"plugins\.gates\.acme-nll\.mots = 2: .*keys: most, blocking"),
        ({"gates": {"acme-nil": {}}}, r"Unknown installed gate 'acme-nil'.*near it: acme-nll.*GPU workers"),
    ],
)
def test_keys_and_names_are_checked_before_a_night_claims_anything(acme, params, wrong, said):
    with pytest.raises(ConfigError, match=said):
        check_plugins(asking(params, **wrong))
    check_plugins(asking(params, methods={"acme_shrink": {"factor": 0.3}}, gates={"acme-nll": {}}))


def test_a_tree_that_is_no_mapping_of_mappings_is_refused_by_params_yaml():
    with pytest.raises(ValidationError):
        Params.model_validate({"plugins": {"gates": ["acme-nll"]}})
    with pytest.raises(ValidationError, match="extra"):
        Params.model_validate({"plugins": {"sources": {}}})


@pytest.mark.parametrize(
    ("kind", "name", "owner"),
    [("method", "retrain", "genrec"), ("gate", "utility", "genrec"), ("source", "tables", "genrec"),
     ("method", "acme_shrink", "(acme-genrec 1.2.0|broken 0.3)")],
)  # fmt: skip
def test_a_name_that_is_taken_is_refused(acme, offers, params, kind, name, owner):
    offers(kind, **{name: "FAILS"})
    with pytest.raises(PluginError, match=rf"'{name}' of .* {owner} has taken\. Rename .* pip uninstall "):
        check_plugins(params)


def test_a_name_that_makes_no_file_name_is_refused(offers, params):
    offers("method", **{"../../etc": "FAILS"})
    with pytest.raises(PluginError, match=r"'\.\./\.\./etc' of broken 0\.3 has no good name"):
        check_plugins(params)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("import not_there", r"broken 0\.3 cannot be imported: ModuleNotFoundError: No module named 'not_there'\. Rep"),
        ("raise RuntimeError('two\\nlines')", r"cannot be imported: RuntimeError: two\\nlines\. Repair"),
        ("", r"cannot be imported: AttributeError"),
        ("FAILS = 3", r"method 'fails' of broken 0\.3 is 3, not a Method\. Repair"),
        (BROKEN.replace('Method("fails"', 'Method("other"'), "calls itself 'other'. Give its entry point that name"),
    ],
)
def test_a_package_that_is_no_good_is_named_in_one_line(offers, module, said):
    offers("method", module=module, fails="FAILS")
    assert [str(plugin) for plugin in plugins().values()] == ["method 'fails' of broken 0.3"]
    with pytest.raises(PluginError, match=said) as error:
        method("fails")
    assert "\n" not in str(error.value)


def test_nobody_else_may_call_a_method_exact(offers):
    offers("method", exact="EXACT")
    with pytest.raises(PluginError, match="exact: its forgetting gates would not block"):
        method("exact")


def test_code_that_fails_is_named_without_the_text_of_its_error(offers, user_problem, params, tmp_path):
    """The text may hold a person's id. A method's failure is the next rung's turn, a gate's stops the night."""
    offers("method", fails="FAILS")
    offers("gate", package="broken-gate", fails="Fails")
    offers("source", package="broken-source", fails="SOURCE", empty="EMPTY")
    (tmp_path / "a.csv").write_text("x")
    (rule,) = rules(asking(params, gates={"fails": {}}))
    for call, error in (
        (lambda: method("fails").run(user_problem), UnlearningError),
        (lambda: rule.judge(None), PluginError),
        (lambda: fetch("fails", tmp_path / "data", source_dir=tmp_path, params=DataParams(), seed=0), DataError),
    ):
        with pytest.raises(error, match=r"failed: ValueError at broken\.py:7\. Repair the package") as told:
            call()
        assert "u0042" not in str(told.value)
    with pytest.raises(DataError, match="failed: AttributeError at"):
        fetch("empty", tmp_path / "data", source_dir=tmp_path, params=DataParams(), seed=0)
    assert not (tmp_path / "data").exists()


def test_a_source_is_fetched_checked_and_named_in_the_data(acme, tmp_path):
    (tmp_path / "orders.csv").write_text("u1,p1,Lamp,Home\nu2,p1,Lamp,Home\nu1,p2,Rope,Sport\n")
    data = tmp_path / "data"
    report = fetch("acme-orders", data, source_dir=tmp_path, params=DataParams(), seed=0)
    assert (report.users, report.items, report.rows) == (2, 2, 3)
    assert json.loads((data / "source.json").read_text())["provider"] == "acme-genrec 1.2.0"
    (tmp_path / "orders.csv").write_text("u1,p1,Lamp,Home\nu1,p1,Lamp,Home\n")
    with pytest.raises(DataError, match="row 2: same user and item as an earlier row"):
        fetch("acme-orders", data, source_dir=tmp_path, params=DataParams(), seed=0)
    with pytest.raises(DataError, match=r"Unknown source 'acme-order'.*near it: acme-orders"):
        fetch("acme-order", data, source_dir=tmp_path, params=DataParams(), seed=0)


@pytest.fixture(scope="module")
def persons(user_problem):
    return (Forgotten("people", user_problem.users, NONE),)


def judged(problem, groups, bundle, params):
    erased = Erased(problem.retained, problem.restored, params.gates, Bootstrap(200), rules=rules(params))
    before = measure(erased, bundle, groups)
    return judge(erased, groups, bundle, bundle, before, bundle, exact=True, wall_s=1.0)[0]


def test_a_gate_of_another_package_decides_like_any_other(acme, user_problem, persons, bundle, params):
    """The champion as its own candidate: nothing of genrec's fails, so the verdict is that of the other gate."""
    found = judged(user_problem, persons, bundle, params)
    assert decide(found, exact=True) == "PASS"
    assert {gate.name for gate in found} <= set(SHIPPED)
    for values, verdict in (({}, "PASS"), ({"most": 1e-3}, "FAIL"), ({"most": 1e-3, "blocking": False}, "PASS")):
        with_it = judged(user_problem, persons, bundle, asking(params, gates={"acme-nll": values}))
        (own,) = [gate for gate in with_it if gate.name == "acme-nll"]
        assert own.verdict == ("FAIL" if "most" in values else "PASS")
        assert decide(with_it, exact=True) == verdict
        assert providers("retrain", with_it) == {"provider.gate.acme-nll": "acme-genrec 1.2.0"}
    assert providers("acme_shrink", found) == {"provider.method": "acme-genrec 1.2.0"}


def test_a_certificate_names_the_method_that_served_its_request_and_every_gate():
    gate = {"provider.gate.acme-nll": "acme-genrec 1.2.0"}
    concept = {"method": "acme_shrink", "providers": {"provider.method": "acme-genrec 1.2.0", **gate}}
    final = {"method": "retrain", "providers": gate}
    for decisive, method_name, named in (
        ([concept, final], "acme_shrink", {"method", "gate acme-nll"}),
        ([concept], "retrain", {"gate acme-nll"}),
        ([{"method": "tracer"}, concept], "tracer", {"gate acme-nll"}),
        ([{"method": "tracer"}], "tracer", set()),
    ):
        assert third_party(decisive, method_name).keys() == named


def test_a_gate_gives_its_own_name_a_known_check_and_the_verdict_of_its_figures(acme, params):
    class Fixed(GateRule):
        def __call__(self, judged):
            return judged

    (named,) = rules(asking(params, gates={"acme-nll": {}}))
    rule = NamedRule(named.plugin, Fixed())
    good = Measure(np.float64(0.5), np.float32(0.5), 0.75, np.int64(3))
    (gate,) = rule.judge(from_measure("acme-nll", good, AT_LEAST, 0.25, "words"))
    assert json.loads(json.dumps(gate.as_dict())) == gate.as_dict()
    assert rule.judge(None) == []
    in_words = gates.Gate("acme-nll", "PASS", 0.0, 0.0, 0.0, 1.0, 3, IN_WORDS, "as the board says")
    assert rule.judge(in_words) == [in_words]
    wrong = (
        from_measure("utility", good, AT_LEAST, 0.25, "words"),
        from_measure("acme-nll", good, AT_LEAST, 0.25, "words", verdict="FAIL"),
        gates.Gate("acme-nll", "FINE", 0.0, 0.0, 0.0, 1.0, 3, IN_WORDS, "words"),
        gates.Gate("acme-nll", "PASS", 0.0, 0.0, 0.0, 1.0, 3, "by eye", "words"),
    )
    for gate in wrong:
        with pytest.raises(PluginError, match=r"gave '.*one of which is wrong"):
            rule.judge(gate)


def test_benches_and_calibrations_are_made_again_when_the_package_changes(acme, params, bundle):
    bench = SimpleNamespace(identity="b", params=params, split=TEST)
    erasure = Erasure("users", 0, np.arange(3), NONE)
    asked = asking(params, methods={"acme_shrink": {"factor": 0.3}})

    def keys():
        return [params_hash(asked, name) for name in ("acme_shrink", "ucan")] + [
            cell_key(bench, erasure, name, code_hash()) for name in ("acme_shrink", "ucan")
        ]

    before = keys()
    assert params_hash(params, "acme_shrink") != before[0]
    assert params_hash(params, "ucan") == before[1]
    module = acme / "acme_genrec.py"
    module.write_text(module.read_text() + "# changed\n")
    after = keys()
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False, True]
