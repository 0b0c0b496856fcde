# Two images: `sidecar` answers beside the caller, `indexer` compiles. Each is an environment below /app that its user
# cannot change, and /data, which is all that a container writes: both run with a read-only root.
#
# Commands are written so that they can be executed without a container engine (.ci/image.py does): in any folder that
# stands for /app, by any user. So they need no root and no apt, and name what is below the work folder relatively.

# The minor version of Python that the tests run with. A tag pins it; all that is installed into it is pinned by hash.
FROM python:3.11.15-slim-trixie AS base
WORKDIR /app
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

FROM base AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# pip works on the environment from outside, so that there is none in it.
RUN mkdir data && python -m venv --without-pip venv

# Without the folder indexer/, the distribution is the sidecar's package alone; its other command has nothing to call.
# What else is removed is large and never loaded: zstandard's second half is for PyPy, asyncmy brings its C sources.
# Nobody can write byte code later, and unchecked-hash keeps it valid whatever a layer does to modification times.
FROM build AS sidecar-build
COPY requirements-sidecar.lock ./
RUN python -m pip --python venv/bin/python install --no-compile --only-binary :all: --require-hashes \
        --requirement requirements-sidecar.lock
COPY setup.py pyproject.toml ./
COPY sidecar sidecar
RUN python -m pip --python venv/bin/python install --no-compile --no-deps --no-build-isolation . \
    && python -m pip --python venv/bin/python uninstall --yes setuptools \
    && rm venv/bin/catalog-indexer venv/lib/python3.*/site-packages/zstandard/_cffi*.so \
    && venv/bin/python -m compileall -q --invalidation-mode unchecked-hash venv/lib

FROM build AS indexer-build
COPY requirements-indexer.lock ./
RUN python -m pip --python venv/bin/python install --no-compile --only-binary :all: --require-hashes \
        --requirement requirements-indexer.lock
COPY setup.py pyproject.toml ./
COPY sidecar sidecar
COPY indexer indexer
RUN python -m pip --python venv/bin/python install --no-compile --no-deps --no-build-isolation . \
    && python -m pip --python venv/bin/python uninstall --yes setuptools \
    && rm venv/lib/python3.*/site-packages/zstandard/_cffi*.so venv/lib/python3.*/site-packages/asyncmy/*.c \
    && venv/bin/python -m compileall -q --invalidation-mode unchecked-hash venv/lib

# The settings' relative paths (var/store.db, corpus.json, …) start at the working directory, and so does whatever
# needs a temporary file where /tmp is read-only: the data volume, which the numeric user owns.
# LOGNAME is who changes catalogs: the user has no name in any file of the image.
FROM base AS run
COPY --from=build --chown=10001:10001 /app/data /data
ENV PATH="/app/venv/bin:$PATH" LOGNAME=container
VOLUME /data
WORKDIR /data
USER 10001:10001
STOPSIGNAL SIGTERM

# Both listen on 127.0.0.1 unless they are told otherwise, and refuse any other address without tokens. In a pod that is
# what is wanted: its containers share one loopback. So no port is exposed. A port other than the default is told by the
# environment rather than the settings file, because the health check knows it from there.
FROM run AS sidecar
LABEL org.opencontainers.image.title="catalog-sidecar"
COPY --from=sidecar-build /app/venv /app/venv
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", "import http.client, os, sys; \
    c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('CATALOG_SIDECAR_PORT', 18160)), timeout=2); \
    c.request('GET', '/ready'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["catalog-sidecar"]
CMD ["serve"]

FROM run AS indexer
LABEL org.opencontainers.image.title="catalog-indexer"
COPY --from=indexer-build /app/venv /app/venv
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", "import http.client, os, sys; \
    c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('CATALOG_INDEXER_PORT', 18170)), timeout=2); \
    c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["catalog-indexer"]
CMD ["serve"]
