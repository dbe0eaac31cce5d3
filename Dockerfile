# The server in one virtual environment, a Python kernel in another, and nothing to write to but
# /var/lib/kernelkeep. docs/install.md tells how to run it and how to add kernels.
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
WORKDIR /src

# The locks come first: they change less often than the code. They are complete: nothing is resolved.
COPY requirements/kernel.txt requirements/
RUN python3 -m venv /opt/kernels/python \
 && /opt/kernels/python/bin/pip install -q --no-deps --require-hashes -r requirements/kernel.txt \
 && /opt/kernels/python/bin/python -m ipykernel install --prefix /kernelspecs >/dev/null 2>&1

COPY requirements/server.txt requirements/
RUN python3 -m venv /opt/kernelkeep \
 && /opt/kernelkeep/bin/pip install -q --no-deps --require-hashes -r requirements/server.txt

COPY pyproject.toml README.md LICENSE ./
COPY app app
# What only builds and installs goes again: the server never installs anything.
RUN /opt/kernelkeep/bin/pip install -q --no-deps --no-build-isolation . \
 && /opt/kernelkeep/bin/pip uninstall -q -y hatchling pathspec pluggy trove-classifiers setuptools pip


FROM ${PYTHON_IMAGE}
# tini reaps the orphans that kernels leave, and passes signals on.
RUN apt-get update -qq \
 && DEBCONF_NOWARNINGS=yes apt-get install -qq -y --no-install-recommends tini >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
 && useradd --uid 1000 --no-create-home --home-dir /var/lib/kernelkeep/home kernelkeep \
 # Options that a file adds are mounted here. What kernels can write is never read as options.
 && touch /etc/kernelkeep.toml \
 # Whatever the user, and whatever the volume is made from.
 && install -d -m 1777 /var/lib/kernelkeep

COPY --from=build /opt/kernels /opt/kernels
COPY --from=build /kernelspecs /usr/local
COPY --from=build /opt/kernelkeep /opt/kernelkeep
COPY deploy/image/kernelkeep deploy/image/healthcheck deploy/image/keeper /usr/local/bin/

# Kernels find the programs of the Python kernel's environment, pip among them; the server's are not
# on the PATH. Kernelspecs that are added on top go to /usr/local/share/jupyter.
ENV PATH=/opt/kernels/python/bin:$PATH \
    LANG=C.UTF-8 \
    KERNELKEEP_HOST=0.0.0.0 \
    KERNELKEEP_PORT=8888 \
    KERNELKEEP_ON_SHUTDOWN=stop \
    KERNELKEEP_CONFIG=/etc/kernelkeep.toml \
    KERNELKEEP_ROOT_DIR=/var/lib/kernelkeep/work \
    KERNELKEEP_STATE_DIR=/var/lib/kernelkeep/state

USER 1000:1000
WORKDIR /var/lib/kernelkeep
VOLUME /var/lib/kernelkeep
EXPOSE 8888
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["healthcheck"]
# -s: orphans come to tini also where it is not process 1 (a pod that shares its process namespace).
ENTRYPOINT ["tini", "-s", "--", "kernelkeep"]
