# The server as an image:
#
#   docker build -t kv .
#   docker run -p 8080:8080 -v kv-data:/app/data kv
#
# PORT and DATA_DIR say where it serves and where it keeps its data; every other option is a variable KV_..., or a flag
# after the name of the image (docker run kv --help). For --engine etcd, build with REQUIREMENTS=requirements-etcd.txt.

FROM python:3.13-slim AS build
WORKDIR /app
COPY requirements.txt .
COPY requirements-etcd.txt .
ARG REQUIREMENTS=requirements.txt
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --require-hashes --only-binary :all: --requirement "$REQUIREMENTS"
COPY gunicorn.conf.py .
COPY kv kv
COPY logd logd
# Who serves may not write here, so that without this each process would compile all of it again.
RUN python -m compileall -q kv logd

FROM python:3.13-slim
LABEL org.opencontainers.image.title="kv" \
      org.opencontainers.image.description="A crash-safe HTTP key-value server" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin kv \
    && install -d -o kv -g kv -m 0700 /app/data
WORKDIR /app
COPY --from=build /app /app
ENV PORT=8080 DATA_DIR=/app/data KV_HOST=0.0.0.0
USER 10001
EXPOSE 8080
VOLUME /app/data
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 \
    CMD [".venv/bin/python", "-m", "kv.healthcheck"]
# The shell replaces itself, so that the server is process 1 and gets the signals. The kernel drops a signal that process 1
# has no handler for yet, unless it is blocked: then the server takes it up.
ENTRYPOINT ["/bin/sh", "-c", "exec env --block-signal=TERM .venv/bin/python -m kv --port=\"$PORT\" --working-dir=\"$DATA_DIR\" \"$@\"", "kv"]
