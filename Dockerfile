# syntax=docker/dockerfile:1
# Two images from one file:
#   docker build --target api        -t finetuneflow-api .         API, workers of default, llm and control, beat, migrate
#   docker build --target worker-gpu -t finetuneflow-worker-gpu .  the same plus torch and the training libraries
# Every package is pinned by requirements/constraints.txt. For builds that are the same byte for byte, pass
# --build-arg PYTHON_IMAGE=python:3.11-slim-trixie@sha256:... as well.
ARG PYTHON_IMAGE=python:3.11-slim-trixie

# ---- the installer, mounted where it is needed and part of no image
FROM ${PYTHON_IMAGE} AS installer
ARG UV_VERSION=0.13.9
RUN python -m venv /opt/installer \
    && /opt/installer/bin/pip install --no-cache-dir --disable-pip-version-check "uv==${UV_VERSION}"

# ---- Python with what the API and the workers without torch need; no source of ours, so that a change of it is cheap
FROM ${PYTHON_IMAGE} AS runtime
# hadolint ignore=DL3064
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=PASSIVE \
    TOKENIZERS_PARALLELISM=false \
    HOME=/data \
    DATA_DIR=/data \
    LOG_JSON=true
RUN groupadd --system --gid 10001 finetuneflow \
    && useradd --system --uid 10001 --gid finetuneflow --home-dir /data --no-create-home --shell /usr/sbin/nologin finetuneflow \
    && install -d -o finetuneflow -g finetuneflow -m 0750 /data \
    && python -m venv --without-pip /opt/venv
WORKDIR /opt/build
COPY pyproject.toml ./
COPY requirements/ requirements/
# The second line is the small base model; its metadata ask for a package that compiles and that is not used here.
RUN --mount=type=bind,from=installer,source=/opt/installer,target=/opt/installer \
    --mount=type=cache,target=/root/.cache/uv \
    export UV_CACHE_DIR=/root/.cache/uv UV_LINK_MODE=copy UV_PYTHON=/opt/venv/bin/python \
    && /opt/installer/bin/uv pip install --compile-bytecode --only-binary :all: -c requirements/constraints.txt -r pyproject.toml \
    && /opt/installer/bin/uv pip install --compile-bytecode --only-binary :all: --no-deps -r requirements/no-deps.txt

# ---- plus torch and the training libraries
FROM runtime AS training
# Empty: the registry's own build, which brings CUDA. `cpu` or `cu130` and the like choose one of PyTorch's builds.
ARG TORCH_BACKEND=
RUN --mount=type=bind,from=installer,source=/opt/installer,target=/opt/installer \
    --mount=type=cache,target=/root/.cache/uv \
    export UV_CACHE_DIR=/root/.cache/uv UV_LINK_MODE=copy UV_PYTHON=/opt/venv/bin/python \
    && /opt/installer/bin/uv pip install --compile-bytecode --only-binary :all: -c requirements/constraints.txt \
       ${TORCH_BACKEND:+--torch-backend="$TORCH_BACKEND"} -r pyproject.toml --extra training
# The container runtime of NVIDIA gives the driver and nvidia-smi to containers that ask for them.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# ---- image: a worker that trains
FROM training AS worker-gpu
WORKDIR /app
COPY --chmod=755 deploy/docker/finetuneflow /usr/local/bin/finetuneflow
COPY migrations/ migrations/
COPY celery_app/ celery_app/
COPY backend/ backend/
USER 10001:10001
# Asks the worker itself over the broker.
HEALTHCHECK --interval=60s --timeout=20s --start-period=60s --retries=3 \
    CMD ["sh", "-c", "celery -b \"$REDIS_URL\" inspect ping -d \"gpu@$HOSTNAME\" -t 10"]
ENTRYPOINT ["finetuneflow"]
CMD ["worker", "gpu"]

# ---- image: everything else (the last stage: what a build without --target makes)
FROM runtime AS api
WORKDIR /app
COPY --chmod=755 deploy/docker/finetuneflow /usr/local/bin/finetuneflow
COPY migrations/ migrations/
COPY celery_app/ celery_app/
COPY backend/ backend/
USER 10001:10001
EXPOSE 8000
# 200 only when the API, PostgreSQL and Redis answer. By http.client, which asks no proxy.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["finetuneflow"]
CMD ["api", "--host", "0.0.0.0"]
