# The image for CUDA machines: train (the last target, so the one that is built by default) and rewards, the reward server.
#   docker build --tag customized-grpo .
#   docker build --tag customized-grpo:rewards --target rewards .
# How to run both: docs/how-to/docker.md. torch's wheels bring CUDA themselves, so the base is Python alone; the driver is the
# host's, through the NVIDIA container toolkit. Everything is pinned: the base by digest, packages by requirements-cuda.txt.
ARG BASE=python:3.12.13-slim-trixie@sha256:229a2c5bfa27522db7815ea81f9bed70af17ccb9de9fc7ad142b1877b5830d36

# The package, built apart: neither the sources nor what builds them are in the image.
FROM ${BASE} AS wheel
WORKDIR /build
RUN pip install --no-cache-dir --no-deps \
  hatchling==1.33.0 packaging==26.3 pathspec==1.1.1 pluggy==1.7.0 tomlkit==0.14.0 trove-classifiers==2026.9.21.13
COPY pyproject.toml README.md LICENSE ./
COPY config config
COPY src src
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${BASE} AS runtime
LABEL org.opencontainers.image.title="Customized-GRPO" \
  org.opencontainers.image.description="Online reinforcement learning for subject-driven image generation" \
  org.opencontainers.image.licenses="Apache-2.0"
# 1000 is the first user of most Linux hosts, whose folders can then be mounted as they are. A named volume on /cache takes its owner from here.
RUN groupadd --gid 1000 grpo \
  && useradd --uid 1000 --gid grpo --create-home grpo \
  && install --directory --owner grpo --group grpo /work /cache
# Gigabytes, so before the package: a change of the code does not move this layer. --no-deps and check: exactly what the file says.
COPY requirements.txt requirements-cuda.txt /opt/customized-grpo/
RUN pip install --no-cache-dir --no-deps --requirement /opt/customized-grpo/requirements-cuda.txt && pip check
COPY --from=wheel /wheels /opt/customized-grpo/wheels
RUN pip install --no-cache-dir --no-deps /opt/customized-grpo/wheels/*.whl && pip check
# Models and encodings go to the volume; utility is nvidia-smi, which the health check asks.
ENV HF_HOME=/cache/huggingface \
  NVIDIA_DRIVER_CAPABILITIES=compute,utility \
  PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["customized-grpo"]

# /health is 200 once every reward is loaded. In a container, other hosts are all that there is, so the server takes a token.
FROM runtime AS rewards
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=15m \
  CMD ["python", "-c", "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/health', timeout=5)"]
CMD ["serve", "hpsv3", "host=0.0.0.0"]

# Whether the driver still answers: containers are known to lose their GPUs when the host reloads systemd. It costs a few
# milliseconds and no memory of the GPU; importing torch every minute would cost seconds, and asking it a CUDA context.
FROM runtime AS train
HEALTHCHECK --interval=60s --timeout=30s --start-period=10s CMD ["nvidia-smi", "--list-gpus"]
CMD ["--help"]
