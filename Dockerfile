# The service on CPUs:            docker build -t gleansr .
# On NVIDIA GPUs, with CUDA 13.0: docker build -t gleansr-cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
# It wants a token:               docker run -e GLEANSR_TOKEN=... -p 127.0.0.1:8008:8008 gleansr
# EXTRAS=serve leaves out what finds heads in photos, 300 MB.
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=photos,serve
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /opt/gleansr
COPY constraints.txt ./
RUN pip install --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install -c constraints.txt ".[$EXTRAS]" && useradd --create-home --uid 10001 gleansr

USER 10001
WORKDIR /home/gleansr

EXPOSE 8008
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8008/healthz', timeout=4)"]
ENTRYPOINT ["gleansr", "serve", "--host", "0.0.0.0"]
