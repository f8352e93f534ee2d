# The commands with all they need, to run on a machine with or without GPUs: see docker/entrypoint.sh.
#
#   docker build --tag resnet-streaming .
#   docker run --gpus all --ipc host resnet-streaming train yamls/full.yaml data.remote=s3://BUCKET/imagenet ...
#
# --ipc host: loader workers hand batches over in shared memory, of which a container has 64 MB by default.
# The torch wheels in requirements.txt bring CUDA's libraries along, so the base image needs Python alone.

ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

RUN useradd --create-home --uid 1000 trainer
WORKDIR /app

# Apart from the code, which changes more often: this layer is the 6 GB one.
COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt

COPY docker/ docker/
COPY yamls/ yamls/
COPY convert/ convert/
COPY train/ train/
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends gcc libc6-dev libjpeg62-turbo-dev \
    && python train/decode/build.py && rm -rf /var/lib/apt/lists/*
COPY LICENSE README.md ./
RUN mkdir runs && chown trainer runs

USER 1000
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["/app/docker/entrypoint.sh"]
CMD ["help"]
