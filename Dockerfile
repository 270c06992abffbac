# Two images from one file: the default, and `--target capture`, in which Python may open raw sockets.
FROM python:3.12-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/weft
COPY requirements.lock /src/
RUN /opt/weft/bin/pip install --require-hashes -r /src/requirements.lock
COPY . /src/
RUN /opt/weft/bin/pip install --no-deps --no-build-isolation /src
# Compiled here, for the kind of processor that builds the image; on another kind a service compiles when it first starts.
RUN NUMBA_CACHE_DIR=/opt/weft/kernels /opt/weft/bin/python -m weft.commands.compile

FROM python:3.12-slim-bookworm AS base
RUN groupadd --gid 10001 weft \
    && useradd --uid 10001 --gid weft --no-create-home --shell /usr/sbin/nologin weft \
    && install -d -o weft -g weft -m 0750 /data
COPY --from=build /opt/weft /opt/weft
# Everything that is written outside /data goes to /tmp, so that the root file system can be read-only.
ENV PATH=/opt/weft/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    NUMBA_CACHE_DIR=/tmp/numba \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /data
VOLUME /data
EXPOSE 8501
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 CMD ["weft", "check", "--data", "/data"]
# Numba uses a cache folder only where it can write, so a writable one is filled with links to the kernels of the image.
ENTRYPOINT ["sh", "-c", "cp -rsnT /opt/weft/kernels \"$NUMBA_CACHE_DIR\" 2>/dev/null; exec weft \"$@\"", "weft"]
CMD ["up", "--data", "/data"]

FROM base AS capture
# A process that is not root gets only the capabilities set on its program's file. So this is a separate image.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libcap2-bin \
    && setcap cap_net_raw+ep "$(readlink -f /usr/local/bin/python3.12)" \
    && apt-get purge --yes --auto-remove libcap2-bin \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001

FROM base
USER 10001:10001
