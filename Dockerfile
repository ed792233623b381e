# The commands in a container, with the locked versions of requirements/onedl.txt.
#
#   docker build -t mmseg_unet_lyft .                                                       # CPU
#   docker build -t mmseg_unet_lyft --build-arg TORCH_INDEX=https://pypi.org/simple .       # CUDA; run with --gpus all
#   docker run --rm -v "$PWD:/data" mmseg_unet_lyft predict best.pth frames --out predictions
#
# Linted by hadolint; not built or run where it was written.
ARG PYTHON=3.11

FROM python:${PYTHON}-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
COPY requirements/onedl.txt requirements/
# torch comes from its own index, everything else from PyPI.
RUN python -m venv /opt/venv \
    && grep '^torch==' requirements/onedl.txt > torch.txt \
    && grep -v '^torch==' requirements/onedl.txt > others.txt \
    && pip install --no-deps --index-url "$TORCH_INDEX" -r torch.txt \
    && pip install -r torch.txt -r others.txt
COPY . .
RUN pip install --no-deps --no-build-isolation .

FROM python:${PYTHON}-slim-bookworm
# What OpenCV loads; Debian keeps no old versions to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 lyft
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["mmseg-unet-lyft"]
CMD ["--help"]
