"""No pinned package has a known vulnerability. Skipped where the database of them cannot be reached."""

import json
import subprocess

import pytest

from tests.support.harness import ROOT

AUDIT = [ROOT / ".venv-tests/bin/pip-audit", "--disable-pip", "--require-hashes", "--format=json", "--timeout=5"]


@pytest.mark.parametrize("requirements", ["requirements.txt", "tests/requirements.txt"])
def test_no_pinned_package_has_a_known_vulnerability(requirements):
    done = subprocess.run(
        [*AUDIT, "--progress-spinner=off", "--requirement", ROOT / requirements],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if not done.stdout:
        pytest.skip(f"the database of vulnerabilities cannot be reached: {done.stderr.splitlines()[-1]}")
    packages = json.loads(done.stdout)["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown:
        pytest.skip(f"the database of vulnerabilities cannot be asked about {len(unknown)} of {len(packages)} packages")
    assert {package["name"]: package["vulns"] for package in packages if package["vulns"]} == {}
