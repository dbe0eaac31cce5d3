"""Identity providers that ask another service: a JupyterHub, or an OpenID Connect issuer.

Nothing here is imported where no option names such a service (`configured`).
"""
