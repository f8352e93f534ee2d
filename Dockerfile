# The commands with all they need, to run on a machine with or without GPUs: see docker/entrypoint.sh.
#
#   docker build --tag resnet-streaming .
#   docker build --tag resnet-streaming:efa --build-arg EFA=1 .        for several EC2 nodes with EFA
#   docker build --build-arg LOCK=requirements-composer.txt ...       the other versions: docs/local-development.md
#   docker run --gpus all --ipc host resnet-streaming train yamls/full.yaml data.remote=s3://BUCKET/imagenet ...
#   docker run --gpus all --ipc host resnet-streaming doctor
#
# --ipc host: loader workers hand batches over in shared memory, of which a container has 64 MB by default.
# The torch wheels in requirements.txt bring CUDA's libraries along, so the base image needs Python alone.

ARG BASE_IMAGE=python:3.11-slim-bookworm

# ---- build: the environment and the native decoder; compilers stay behind here --------------------------------------------
FROM ${BASE_IMAGE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Debian's stable release has one version of each package, so there is none to pin.
# hadolint ignore=DL3008
RUN apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends gcc libc6-dev libjpeg62-turbo-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
# Apart from the code, which changes more often: this layer is the 6 GB one.
ARG LOCK=requirements.txt
COPY requirements.txt requirements-composer.txt ./
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes -r "${LOCK}"
COPY imagestream/ imagestream/
RUN /opt/venv/bin/python imagestream/decode/build.py

# ---- the image ------------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE}
# EFA: the driver is the host's (AWS's images have it); libfabric and aws-ofi-nccl, NCCL's plug-in, are the image's. The
# installer brings both: 1.49.0 has libfabric 2.4.0amzn5.0 and aws-ofi-nccl 1.20.0. AWS publishes the SHA-256 of each version
# (docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-verify.html); this one is as three public repositories have it, NVIDIA's
# ai-dynamo/dynamo among them, since we cannot reach the source itself. With another version give its own.
ARG EFA=0
ARG EFA_INSTALLER=1.49.0
ARG EFA_INSTALLER_SHA256=cf2e9281a2328a243c76f911a490faed43ca0fecfe4733c25e34b2e92a32c309
COPY docker/efa.sh /tmp/efa.sh
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends libjpeg62-turbo \
    && if [[ $EFA == 1 ]]; then \
         apt-get install -qq -y --no-install-recommends ca-certificates curl pciutils environment-modules \
         && bash /tmp/efa.sh "${EFA_INSTALLER}" "${EFA_INSTALLER_SHA256}"; \
       fi \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 trainer
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY docker/ docker/
COPY yamls/ yamls/
COPY infra/ infra/
COPY convert/ convert/
COPY train/ train/
COPY --from=build /app/imagestream/ imagestream/
COPY LICENSE README.md ./
# Python writes its bytecode beside the code only as root; without it each start imports torch and Composer for 20 s.
RUN /opt/venv/bin/python -m compileall -q imagestream convert train infra docker /opt/venv/lib >/dev/null || true \
    && mkdir runs && chown trainer runs
USER 1000
# NVIDIA_*: by these enroot's hook and NVIDIA's runtime know that GPUs and driver are wanted; without them there are none
# (github.com/NVIDIA/enroot, conf/hooks/98-nvidia.sh; docs.nvidia.com/datacenter/cloud-native/container-toolkit).
ENV PATH=/opt/venv/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    LD_LIBRARY_PATH=/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu:/opt/amazon/ofi-nccl/lib:/opt/amazon/efa/lib
ENTRYPOINT ["/app/docker/entrypoint.sh"]
CMD ["help"]
