"""A short slice of the fuzzer of the service."""

from itertools import islice

from tests.fuzz import findings, http, trials


def test_hostile_clients_leave_the_service_as_it_was():
    counts = http.run(islice(trials(0), 50))
    assert findings(counts) == [], counts
    assert counts["(200)"] > 0
