# docker build --target cpu --tag hmc-fast:cpu .
# docker build --target cuda --tag hmc-fast:cuda .      then: docker run --gpus all hmc-fast:cuda doctor
FROM python:3.12-slim-bookworm AS sources
# Triton and torch.compile call a compiler when they run.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home hmc
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY hmc_fast hmc_fast
COPY kernels kernels
COPY bench bench
COPY export export

FROM sources AS cpu
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir ".[dicom,explain,export,openvino]"
USER hmc
WORKDIR /home/hmc
ENTRYPOINT ["hmc-fast"]
CMD ["--help"]

# PyPI's torch for Linux brings CUDA's libraries; the driver is the host's.
FROM sources AS cuda
RUN pip install --no-cache-dir ".[dicom,explain,export]"
USER hmc
WORKDIR /home/hmc
ENTRYPOINT ["hmc-fast"]
CMD ["--help"]
