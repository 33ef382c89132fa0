# syntax=docker/dockerfile:1
# For GPUs: docker build -t ugt-composer .
# For CPUs: docker build --build-arg DEVICE=cpu -t ugt-composer:cpu .
# Run it:   docker run --gpus all --shm-size 16g -v "$PWD/mds:/app/mds" … ugt-composer composer train.py yamls/stage1.yaml
# PyTorch's wheels contain CUDA and NCCL, and the host has the driver: no CUDA base image is needed, nor nvcc.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm
ARG PYTHON
ARG DEVICE=cuda
ARG EXTRAS=wandb,mlflow,sweep
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# tini passes signals on and reaps processes. Triton compiles its launchers with gcc when a kernel first runs, and
# `compile: true` its C++ with g++. NCCL loads ibverbs for InfiniBand; without it, it uses TCP.
# hadolint ignore=DL3008
RUN packages=(tini gcc g++ libc6-dev); \
    case $DEVICE in \
        cuda) packages+=(ibverbs-providers) ;; \
        cpu) ;; \
        *) echo "DEVICE is $DEVICE; expected cuda or cpu" >&2; exit 2 ;; \
    esac; \
    apt-get update; \
    apt-get install -y --no-install-recommends "${packages[@]}"; \
    rm -rf /var/lib/apt/lists/*; \
    useradd --uid 1000 --user-group --create-home ugt

WORKDIR /app
# The dependencies, in a layer that changes with them only. For CPUs, PyTorch's own index has wheels without CUDA.
COPY pyproject.toml ./
COPY constraints constraints
RUN --mount=type=cache,target=/root/.cache/pip \
    constraints="constraints/py$PYTHON.txt"; \
    python -c 'import sys, tomllib; \
project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
extras = [project["optional-dependencies"][name] for name in sys.argv[1].split(",") if name]; \
print(*project["dependencies"], *sum(extras, []), sep="\n")' "$EXTRAS" >/tmp/requirements.txt; \
    options=(); \
    if [ "$DEVICE" = cpu ]; then \
        sed -nE 's/^(torch|torchvision)==.*/&+cpu/p' "$constraints" >>/tmp/requirements.txt; \
        options+=(--extra-index-url https://download.pytorch.org/whl/cpu); \
    fi; \
    pip install --disable-pip-version-check --root-user-action ignore "${options[@]}" -c "$constraints" \
        -r /tmp/requirements.txt; \
    rm /tmp/requirements.txt

# The project, editable, so that train.py and the package are the same files. Compiled now: the user cannot write here
# what root owns, and would compile it in each container.
COPY --chown=ugt:ugt . .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --disable-pip-version-check --root-user-action ignore --no-deps -e .; \
    python -m compileall -q ugt_composer convert examples train.py rounds.py; \
    chown ugt:ugt /app

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["ugt", "--help"]
