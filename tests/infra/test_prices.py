"""Prices come from AWS where there are credentials, carry a date, and are warned of when they are old."""

import datetime
import json
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from infra.aws.spending import RefusedError, job_step, show
from infra.plan import prices
from infra.plan.machines import machine, price_warnings, prices_file, read_table
from infra.plan.plan import main as plan_main
from infra.plan.torch_code import ARCHITECTURES, has_code_for, torch_problem
from tests.conftest import REPOSITORY

FULL = str(REPOSITORY / "yamls/full.yaml")
TODAY = datetime.datetime.now(datetime.UTC).date().isoformat()


@pytest.fixture
def file() -> Path:
    """Where prices go; there are none yet."""
    return prices_file()


def product(price: str, unit: str = "Hrs") -> str:
    """One product as the Pricing API gives it: JSON in a string (AmazonEC2's price list, FormatVersion aws_v1)."""
    dimension = {"unit": unit, "pricePerUnit": {"USD": price}, "description": "per On Demand Linux Instance Hour"}
    terms = {"OnDemand": {"SKU.JRTCKXETXF": {"priceDimensions": {"SKU.JRTCKXETXF.6YS6EN2CT7": dimension}}}}
    return json.dumps({"product": {"sku": "SKU"}, "serviceCode": "AmazonEC2", "terms": terms})


def client(service: str) -> Any:
    session: Any = boto3.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")
    return session.client(service)


def asked(name: str, region: str) -> dict[str, Any]:
    """The request for an instance type's price."""
    wanted = prices.FILTERS | {"instanceType": name, "regionCode": region}
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    return {"ServiceCode": "AmazonEC2", "FormatVersion": "aws_v1", "Filters": filters}


def test_a_price_on_demand_is_taken_out_of_the_pricing_apis_answer() -> None:
    pricing = client("pricing")
    with Stubber(pricing) as stubber:
        first = {"FormatVersion": "aws_v1", "PriceList": [product("0.0000000000")], "NextToken": "more"}
        stubber.add_response("get_products", first, asked("p5.48xlarge", "us-east-2"))
        second = {"FormatVersion": "aws_v1", "PriceList": [product("55.0400000000"), product("1.0", "Quantity")]}
        stubber.add_response("get_products", second, asked("p5.48xlarge", "us-east-2") | {"NextToken": "more"})
        stubber.add_response("get_products", {"PriceList": []})
        assert prices.on_demand_price(pricing, "p5.48xlarge", "us-east-2") == 55.04
        assert prices.on_demand_price(pricing, "p5e.48xlarge", "us-east-2") is None


def test_several_prices_of_one_machine_are_refused_rather_than_one_of_them_chosen() -> None:
    pricing = client("pricing")
    with Stubber(pricing) as stubber:
        stubber.add_response("get_products", {"PriceList": [product("55.04"), product("57.04")]})
        with pytest.raises(prices.PriceError, match=r"has 2 prices in us-east-1"):
            prices.on_demand_price(pricing, "p5.48xlarge", "us-east-1")


def test_spot_is_the_cheapest_zones() -> None:
    ec2 = client("ec2")
    now = datetime.datetime.now(datetime.UTC)
    rows = [
        ("p4d.24xlarge", "us-east-1a", "14.5"),
        ("p4d.24xlarge", "us-east-1b", "12.1"),
        ("g5.xlarge", "us-east-1a", "0.5"),
    ]
    history = [
        {
            "InstanceType": kind,
            "AvailabilityZone": zone,
            "SpotPrice": price,
            "Timestamp": now,
            "ProductDescription": "Linux/UNIX",
        }
        for kind, zone, price in rows
    ]
    with Stubber(ec2) as stubber:
        stubber.add_response("describe_spot_price_history", {"SpotPriceHistory": history})
        found = prices.spot_prices(ec2, ["p4d.24xlarge", "g5.xlarge", "p5.48xlarge"])
    assert found == {"p4d.24xlarge": 12.1, "g5.xlarge": 0.5}


def test_prices_that_were_read_take_the_tables_place_until_the_table_is_newer(file: Path) -> None:
    prices.write(file, "us-east-2", {"p4d.24xlarge": 20.5, "p5e.48xlarge": 40.0}, {"p4d.24xlarge": 11.0})
    found = machine("p4d.24xlarge")
    assert (found.usd_per_hour, found.spot_usd_per_hour, found.region) == (20.5, 11.0, "us-east-2")
    assert found.prices_read == TODAY
    assert machine("p5.48xlarge").usd_per_hour is None, "AWS was asked, and does not sell it there"
    old = json.loads(file.read_text()) | {"read": "2020-01-01"}
    file.write_text(json.dumps(old))
    assert machine("p4d.24xlarge").usd_per_hour == 21.96


def test_a_damaged_file_of_prices_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('{"read": "2026-')
    assert plan_main([FULL]) == 2
    assert f"{file} is not what infra/plan/prices.py writes" in capsys.readouterr().err
    with pytest.raises(RefusedError, match=r"is not what infra/plan/prices.py writes"):
        job_step("p4d.24xlarge", 1, spot=False)


def test_without_credentials_nothing_is_written(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert prices.main([]) == 2
    assert "no AWS credentials are found" in capsys.readouterr().err and not file.exists()


@pytest.mark.parametrize(("age_days", "warns"), [(0, False), (183, False), (184, True), (700, True)])
def test_prices_older_than_half_a_year_are_warned_of(age_days: int, warns: bool) -> None:
    today = datetime.date(2026, 11, 29)
    read = (today - datetime.timedelta(days=age_days)).isoformat()
    expected = (
        [f"WARNING: the prices are of {read}, {age_days} days ago: do not plan money with them. "] if warns else []
    )
    assert [
        warning[: len(start)] for warning, start in zip(price_warnings([read], today), expected, strict=True)
    ] == expected


def test_a_plan_and_the_clouds_command_warn_each_time_of_old_prices_and_not_of_new_ones(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prices.write(file, "us-east-1", dict.fromkeys(read_table()["machines"], 1.0), {})
    for lasts_days, warnings in ((-1, 2), (0, 0)):
        monkeypatch.setattr("infra.plan.machines.DAYS_A_PRICE_LASTS", lasts_days)
        assert plan_main([FULL]) == 0
        show([job_step("p4d.24xlarge", 2, spot=False)])
        said = capsys.readouterr()
        assert said.err.count(f"WARNING: the prices are of {TODAY}") == warnings
        assert said.out.count("check them") == 2


def test_a_machine_without_a_price_is_planned_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_main([FULL, "--instance", "p5e.48xlarge", "--json", str(tmp_path / "plan.json")]) == 0
    report = json.loads((tmp_path / "plan.json").read_text())
    assert report["usd_on_demand"] is None and report["usd_spot"] is None and report["hours"] > 0
    said = capsys.readouterr()
    assert "cost          no price of p5e.48xlarge is known; `python infra/plan/prices.py` asks AWS" in said.out
    assert "$?" in said.out and "prices are of" not in said.err
    with pytest.raises(RefusedError, match=r"no price of p6-b200.48xlarge on spot is known"):
        job_step("p6-b200.48xlarge", 1, spot=True)


@pytest.mark.parametrize(
    ("capability", "version", "has"),
    [
        *[(capability, "2.15.0", True) for capability in ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0")],
        *[(capability, "2.7.0", True) for capability in ("7.0", "8.0", "8.9", "9.0")],
        *[(capability, "2.7.0", False) for capability in ("10.0", "10.3", "12.0")],
        ("7.0", "2.15.0", False),
    ],
)
def test_which_torch_has_code_for_which_gpu(capability: str, version: str, has: bool) -> None:
    assert has_code_for(capability, ARCHITECTURES[version]) == has
    assert (torch_problem("GPU", capability, version) == "") == has


def test_code_of_one_kind_runs_on_later_gpus_of_its_generation_and_what_is_compiled_late_on_all() -> None:
    assert has_code_for("8.9", ["sm_86"]) and not has_code_for("8.0", ["sm_86"]) and not has_code_for("9.0", ["sm_86"])
    assert has_code_for("12.0", ["compute_90"]) and not has_code_for("8.0", ["compute_90"])
    assert not has_code_for("9.0", ["sm_90a"])


def test_the_architectures_are_those_of_the_torch_that_is_installed() -> None:
    import torch

    built_for = torch.cuda.get_arch_list() or torch._C._cuda_getArchFlags()
    if not built_for:
        pytest.skip("this torch is for CPUs alone")
    version = torch.__version__.partition("+")[0]
    assert tuple(built_for if isinstance(built_for, list) else built_for.split()) == ARCHITECTURES[version]


def test_a_plan_for_blackwell_says_that_composers_own_torch_has_no_code_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for version, words in (
        ("2.7.0", "has no code for the B200 (10.0); torch 2.15.0 has"),
        ("2.15.0", ""),
    ):
        monkeypatch.setattr("infra.plan.plan.installed_torch", lambda version=version: version)
        assert plan_main([FULL, "--instance", "p6-b200.48xlarge"]) == 0
        said = capsys.readouterr().err
        assert words in said and ("no code" in said) == bool(words)


def test_each_machine_has_a_compute_capability_that_some_torch_has_code_for() -> None:
    for name in read_table()["machines"]:
        capability = machine(name).compute_capability
        assert any(has_code_for(capability, known) for known in ARCHITECTURES.values()), name
