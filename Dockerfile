# mopd for machines without a GPU and with one; not built by any test yet.
#
#     docker build --target cpu --tag mopd:cpu .
#     docker build --target gpu --tag mopd:gpu .
#     docker run --rm --volume "$PWD:/work" mopd:cpu check quickstart
#     docker run --rm --gpus all --shm-size 16g --volume "$PWD:/work" mopd:gpu run ./mine.yaml
#
# /work is where runs, models and recipes of your own lie.

FROM python:3.11-slim-bookworm AS base
# Debian removes a version of a package when it has the next.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY mopd mopd
COPY distill distill
COPY teachers teachers
COPY rollouts rollouts
COPY recipes recipes
# DeepSpeed compiles nothing at installation; the ops that it needs are torch's own.
ENV DS_BUILD_OPS=0 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1
RUN useradd --create-home --uid 1000 mopd && mkdir /work && chown mopd /work

FROM base AS cpu
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu --constraint constraints.txt '.[envs]'
USER 1000
WORKDIR /work
ENTRYPOINT ["mopd"]
CMD ["--help"]

# PyPI's torch brings CUDA's libraries; the machine has the driver and NVIDIA's container toolkit.
FROM base AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install --constraint constraints.txt '.[envs]'
USER 1000
WORKDIR /work
ENTRYPOINT ["mopd"]
CMD ["--help"]
