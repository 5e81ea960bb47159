# Triton with Inflight on processors (OpenVINO), for deploy/kubernetes/overlays/cpu. Never built by its authors: see the
# Dockerfile in the root, which is for GPUs. tests/reliability/test_kubernetes.py runs its command without an image.
#
#   docker build -f deploy/cpu.Dockerfile --build-arg BASE=IMAGE -t inflight-cpu .
ARG BASE=nvidia/tritonserver:26.07-py3
FROM ${BASE}

COPY requirements/serve.txt /opt/inflight/requirements/
COPY requirements/gateway.txt /opt/inflight/requirements/
COPY python_backend /opt/tritonserver/backends/inflight
COPY build_engine /opt/inflight/build_engine
COPY scripts /opt/inflight/scripts
COPY gateway /opt/inflight/gateway
COPY model_repository/llm/config.pbtxt /models/llm/config.pbtxt
ENV PYTHONPATH=/opt/tritonserver/backends/inflight:/opt/inflight:/opt/inflight/scripts:/opt/inflight/gateway
RUN mkdir -p /models/llm/1 \
    && python3 -m pip install --no-cache-dir --no-deps \
        -r /opt/inflight/requirements/serve.txt -r /opt/inflight/requirements/gateway.txt

EXPOSE 8000 8001 8002 8003 8080
HEALTHCHECK --start-period=15m --interval=10s --timeout=5s \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8003/ready', timeout=4)"]
CMD ["python3", "-m", "inflight_tools.server.serve", "--repository", "/models", "--model", "llm", "--host", "0.0.0.0"]
