# CUDA image: docker build -f docker/cuda.Dockerfile -t fastcache-xdit:cuda . && docker run --gpus all fastcache-xdit:cuda ...
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
WORKDIR /opt/fastcache_xdit
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-pip python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
RUN pip install --no-cache-dir torch==2.13.0
COPY . .
RUN pip install --no-cache-dir .
ENTRYPOINT ["torchrun"]
CMD ["--standalone", "--nproc_per_node", "2", "-m", "fastcache_xdit", "generate", "--config", "configs/quickstart.yaml"]
