# Never built by its authors: the base image cannot be fetched where Inflight is developed. tests/unit/engines/tensorrt_llm/test_docs.py
# looks at what it copies and installs; the first build on a GPU machine is the real test (see docs/gpu.md).
#
#   docker build --build-arg BASE=IMAGE -t inflight .     (IMAGE: NVIDIA's Triton image with TensorRT-LLM, see below)
#   docker run --rm --gpus all --shm-size=2g -p 8000-8002:8000-8002 -v $PWD/engine:/models/llm/1/engine inflight
#
# Triton 26.07 with TensorRT-LLM 1.2.1: the last stable release that compiles and runs engines.
# On NVIDIA's own registry it is called nvidia/tritonserver:26.07-trtllm-python-py3.
ARG BASE=nvidia/tritonserver:26.07-trtllm-python-py3
FROM ${BASE}

COPY requirements/serve.txt /opt/inflight/requirements/
# What serving needs beside TensorRT-LLM. OpenVINO stays out: this image is for GPUs. The image's own numpy, torch and
# TensorRT-LLM are never touched.
RUN grep -Ei '^(msgspec|tokenizers|jinja2|markupsafe)==' /opt/inflight/requirements/serve.txt > /tmp/serve.txt \
    && python3 -m pip install --no-cache-dir --no-deps -r /tmp/serve.txt \
    && python3 -c "import msgspec, tokenizers, jinja2, numpy" \
    && rm /tmp/serve.txt

COPY python_backend /opt/tritonserver/backends/inflight
COPY build_engine /opt/inflight/build_engine
COPY scripts /opt/inflight/scripts
COPY model_repository/llm/config.pbtxt /models/llm/config.pbtxt
RUN mkdir -p /models/llm/1
ENV PYTHONPATH=/opt/tritonserver/backends/inflight:/opt/inflight:/opt/inflight/scripts

EXPOSE 8000 8001 8002
HEALTHCHECK --start-period=15m --interval=10s --timeout=5s \
    CMD python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"
# A raw SIGTERM to tritonserver does not drain Inflight's streams; in Kubernetes use a preStop command that asks for it
# (docs/operating.md).
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=explicit", "--load-model=llm", "--exit-timeout-secs=45"]
