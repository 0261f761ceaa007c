# docker build -t dqs-lightning .
# docker run --rm -v dqs-runs:/home/dqs/runs dqs-lightning --config walker
# The other commands: docker run --rm --entrypoint dqs-eval ...
FROM python:3.11-slim-bookworm

# EGL and OSMesa render videos without a display.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgl1 libosmesa6 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
COPY callbacks callbacks
COPY configs configs

# The index of torch: that of its CPU builds. For a GPU: .../whl/cu130; empty: PyPI's build alone.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Extras of pyproject.toml, separated by commas.
ARG EXTRAS=export,report
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[$EXTRAS]"

RUN useradd --create-home dqs
USER dqs
WORKDIR /home/dqs
RUN mkdir runs
ENTRYPOINT ["dqs-fit"]
