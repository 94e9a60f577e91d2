"""A short slice of the fuzzer of the service."""

from tests.fuzz import findings, http


def test_hostile_clients_leave_the_service_as_it_was():
    counts = http.run(5, 0)
    assert findings(counts) == [], counts
    assert counts["(200)"] > 0
