# The service, by default on CPUs:  docker build -t gleansr .
# With CUDA 12.8:                   docker build -t gleansr --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# It wants a token:                 docker run -e GLEANSR_TOKEN=... -p 127.0.0.1:8008:8008 gleansr
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /opt/gleansr
COPY constraints.txt ./
RUN pip install --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install -c constraints.txt ".[serve]"

RUN useradd --create-home --uid 10001 gleansr
USER gleansr
WORKDIR /home/gleansr

EXPOSE 8008
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8008/healthz', timeout=4)"]
ENTRYPOINT ["gleansr", "serve", "--host", "0.0.0.0"]
