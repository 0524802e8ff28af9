# The control plane: Dagster, MLflow and the `gatehouse` command. It imports no torch, but the tiny recipe's jobs run in
# the same container, so the CPU libraries are installed too.
FROM python:3.12-slim

RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /gatehouse
COPY pyproject.toml constraints.txt LICENSE README.md Makefile dagster.yaml workspace.yaml env.sh ./
COPY pipeline pipeline
COPY training training
COPY kernels kernels
COPY assets_config assets_config
RUN make setup
ENV GATEHOUSE_HOME=/state PATH=/gatehouse/.venv/bin:$PATH
VOLUME /state
CMD ["gatehouse", "up"]
