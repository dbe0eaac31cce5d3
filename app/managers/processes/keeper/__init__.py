"""The keeper, as the service sees it."""
