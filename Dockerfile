# Never built by its authors: the base image cannot be fetched where Inflight is developed.
# tests/unit/engines/tensorrt_llm/test_image.py runs its steps beside the transformers of each release, and hadolint;
# tests/integration/test_image_command.py its command and its health check beside a real tritonserver, without an image.
# The first build on a GPU machine is the real test (see docs/gpu.md).
#
#   docker build --build-arg BASE=IMAGE -t inflight .     (IMAGE: NVIDIA's Triton image with TensorRT-LLM, see below)
#   docker run --rm --gpus all --shm-size=2g --ulimit memlock=-1 --ulimit stack=67108864 \
#     -p 8000-8003:8000-8003 -p 127.0.0.1:8080:8080 -v $PWD/engine:/models/llm/1/engine inflight
#
# Triton 26.07 with TensorRT-LLM 1.2.1: the last stable release that compiles and runs engines.
# On NVIDIA's own registry it is called nvidia/tritonserver:26.07-trtllm-python-py3.
ARG BASE=nvidia/tritonserver:26.07-trtllm-python-py3
FROM ${BASE}

COPY requirements/serve.txt /opt/inflight/requirements/
COPY requirements/gateway.txt /opt/inflight/requirements/
COPY python_backend /opt/tritonserver/backends/inflight
COPY build_engine /opt/inflight/build_engine
COPY gateway /opt/inflight/gateway
COPY scripts /opt/inflight/scripts
COPY model_repository/llm/config.pbtxt /models/llm/config.pbtxt
ENV PYTHONPATH=/opt/tritonserver/backends/inflight:/opt/inflight:/opt/inflight/scripts:/opt/inflight/gateway
# The gateway's packages lie in a folder of their own, which the gateway alone looks into: TensorRT-LLM pins protobuf, too.
ENV INFLIGHT_GATEWAY_PACKAGES=/opt/inflight/gateway_packages
# Only what the image lacks (msgspec, as far as its sources say): TensorRT-LLM pins what it brings, and transformers
# refuses to be imported beside a tokenizers of another minor version. OpenVINO stays out: this image is for GPUs. The
# last line imports what serving, `compile` and `inspect` import; TensorRT-LLM itself needs a driver, so it is only found.
RUN mkdir -p /models/llm/1 \
    && for name in msgspec jinja2 markupsafe tokenizers numpy; do \
        if ! python3 -c "import ${name}" 2>/dev/null; then \
            grep -E "^${name}==" /opt/inflight/requirements/serve.txt > /tmp/lacking.txt \
            && python3 -m pip install --no-cache-dir --no-deps -r /tmp/lacking.txt || exit 1; \
        fi; \
    done \
    && rm -f /tmp/lacking.txt \
    && python3 -m pip install --no-cache-dir --no-deps --target "${INFLIGHT_GATEWAY_PACKAGES}" \
        -r /opt/inflight/requirements/gateway.txt \
    && python3 -c "import inflight_gateway.cli" \
    && python3 -c "import importlib.util as u, transformers, numpy, inflight.backend.model, build_engine.cli; assert u.find_spec('tensorrt_llm'), 'the image has no tensorrt_llm'"

EXPOSE 8000 8001 8002 8003 8080
HEALTHCHECK --start-period=15m --interval=10s --timeout=5s \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8003/ready', timeout=4)"]
# On SIGTERM it reports not ready, serves for drain_notice_ms more, finishes its streams and ends: allow the stop 80 s
# (docs/operating.md). A raw tritonserver would do nothing of this.
CMD ["python3", "-m", "inflight_tools.server.serve", "--repository", "/models", "--model", "llm", "--host", "0.0.0.0"]
