"""What a server tells Prometheus."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.support.rest import RestClient


class Metrics:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self.names = [family.name for family in families]
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """The value of the sample with exactly these labels; 0 if there is none."""
        return self._samples.get((name, frozenset(labels.items())), 0.0)

    def has(self, name: str, **labels: str) -> bool:
        return (name, frozenset(labels.items())) in self._samples

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of every sample of that name."""
        return [dict(labels) for found, labels in self._samples if found == name]


async def scrape(rest: RestClient) -> Metrics:
    return Metrics((await rest.request("GET", "/metrics")).text)
