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

# An index with builds of torch for a CPU alone, which are smaller: --build-arg TORCH_INDEX=...
ARG TORCH_INDEX=
# Extras of pyproject.toml, separated by commas.
ARG EXTRAS=export,report
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[$EXTRAS]"

RUN useradd --create-home dqs
USER dqs
WORKDIR /home/dqs
RUN mkdir runs
ENTRYPOINT ["dqs-fit"]
