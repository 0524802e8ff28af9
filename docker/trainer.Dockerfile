# A GPU job's image: everything `python -m training.run job.json` needs, and no orchestrator.
# Any image with Python 3.12 and torch 2.11 for CUDA: docker build --build-arg BASE=... -f docker/trainer.Dockerfile .
ARG BASE
FROM ${BASE}

WORKDIR /gatehouse
COPY pyproject.toml LICENSE README.md ./
COPY training training
COPY kernels kernels
# The image brings its own torch and CUDA; the constraint keeps pip from replacing it.
RUN python -c "import torch; print(f'torch=={torch.__version__}')" > /tmp/torch.txt \
 && pip install --no-cache-dir --constraint /tmp/torch.txt transformers==5.23.0 accelerate==1.15.0 deepspeed==0.19.8 \
    peft==0.21.2 trl==1.16.0 datasets==5.2.0 torchao==0.18.0 liger-kernel==0.8.5 numba==0.68.1 daft==0.7.26 \
    'lm-eval[ifeval]==0.4.13' wasmtime==50.0.1 componentize-py==0.25.1 s3fs==2026.9.0 matplotlib \
    psutil pydantic zstandard
ENV PYTHONPATH=/gatehouse:/gatehouse/kernels
ENTRYPOINT ["python", "-m", "training.run"]
